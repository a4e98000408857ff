/* Reads a scenario's line file and answers what its quantities are at a moment.
 *
 * The line file is written by scenario.py from JSON and named by ORCHESTRATOR_NVML_SCENARIO.
 * Quantities are steps over time since the scenario began; the file holds that moment on
 * CLOCK_MONOTONIC, so every process of a host sees the same GPU at the same time. Energy is the
 * integral of power, throttle counters are integrals of the clocks-event reasons: they agree by
 * construction. Structures and constants follow NVIDIA's published NVML API.
 *
 * line file      driver V | nvml V | cuda N | init CODE | start NS | device | slice     (a MIG slice)
 *                string KEY TEXT | step KEY SECONDS VALUE | error FUNCTION SECONDS CODE
 *                field ID CODE | process KIND PID BYTES FROM UNTIL | hang FROM UNTIL
 */

#define _GNU_SOURCE
#include "scenario.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

scenario_t S;

static const char *const KEYS[] = {
    "power_w", "power_limit_w", "sm_clock_mhz", "sm_clock_max_mhz", "sm_clock_app_mhz",
    "memory_clock_mhz", "temperature_c", "memory_temperature_c", "pstate", "utilization",
    "memory_utilization", "memory_total_bytes", "memory_reserved_bytes", "memory_used_bytes",
    "reasons", "pcie_generation", "pcie_width", "ecc_corrected", "ecc_uncorrected",
    "energy_tick_s", "energy_base_mj", "energy_modulus_mj", "energy_reset_s",
    "capability_major", "capability_minor", "mig",
};
u64 now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (u64)at.tv_sec * 1000000000ull + (u64)at.tv_nsec;
}

double now_s(void) { return (double)(now_ns() - S.start_ns) / 1e9; }

static int key_of(const char *name) {
    for (int i = 0; i < KEY_COUNT; i++)
        if (!strcmp(KEYS[i], name)) return i;
    return -1;
}

int told(const device_t *d, int key) { return d->line[key].n > 0; }

double at(const device_t *d, int key, double t) {
    const line_t *l = &d->line[key];
    double value = l->n ? l->v[0] : 0;
    for (int i = 1; i < l->n && l->t[i] <= t; i++) value = l->v[i];
    return value;
}

/* Integral over [0, t] of the quantity, or of the time during which one of `bits` is set in it. */
static double integral(const device_t *d, int key, u64 bits, double t) {
    const line_t *l = &d->line[key];
    double sum = 0;
    for (int i = 0; i < l->n; i++) {
        double begin = i ? l->t[i] : 0, end = i + 1 < l->n ? l->t[i + 1] : t;
        if (end > t) end = t;
        if (end > begin)
            sum += (end - begin) * (bits ? ((u64)l->v[i] & bits ? 1.0 : 0.0) : l->v[i]);
    }
    return sum;
}

u64 energy_mj(const device_t *d, double t) {
    double tick = at(d, ENERGY_TICK, t), reset = at(d, ENERGY_RESET, t);
    double seen = tick > 0 ? (double)(u64)(t / tick) * tick : t;
    double mj = at(d, ENERGY_BASE, t) + 1e3 * integral(d, POWER, 0, seen);
    if (told(d, ENERGY_RESET) && t >= reset) mj = 1e3 * integral(d, POWER, 0, seen) -
                                                  1e3 * integral(d, POWER, 0, reset);
    u64 whole = mj > 0 ? (u64)mj : 0, modulus = (u64)at(d, ENERGY_MODULUS, t);
    return modulus ? whole % modulus : whole;
}

double power_average_w(const device_t *d, double t) {
    double begin = t > 1 ? t - 1 : 0;
    if (t - begin < 1e-3) return at(d, POWER, t);
    return (integral(d, POWER, 0, t) - integral(d, POWER, 0, begin)) / (t - begin);
}

u64 throttled_ns(const device_t *d, u64 bits, double t) {
    return (u64)(1e9 * integral(d, REASONS, bits, t));
}

static int read_line(char *text, device_t **current) {
    char word[32] = "", key[64] = "";
    int used = 0;
    if (sscanf(text, "%31s %n", word, &used) < 1 || word[0] == '#') return 1;
    char *rest = text + used;
    rest[strcspn(rest, "\n")] = 0;
    device_t *d = *current;
    if (!strcmp(word, "driver")) {
        snprintf(S.driver, sizeof S.driver, "%s", rest);
        const char *digits = strpbrk(rest, "0123456789");
        S.driver_number = digits ? atof(digits) : 0;
    } else if (!strcmp(word, "nvml")) {
        snprintf(S.nvml, sizeof S.nvml, "%s", rest);
    } else if (!strcmp(word, "cuda")) {
        S.cuda = atoi(rest);
    } else if (!strcmp(word, "init")) {
        S.init = atoi(rest);
    } else if (!strcmp(word, "start")) {
        S.start_ns = strtoull(rest, NULL, 10);
    } else if (!strcmp(word, "device") || !strcmp(word, "slice")) {
        if (S.count == MAX_DEVICES || !(d = calloc(1, sizeof *d))) return 0;
        d->hang_from = d->hang_until = -1;
        if (word[0] == 's') {
            device_t *parent = *current;
            if (!parent) return 0;
            d->parent = parent->parent ? parent->parent : parent;
            for (unsigned i = 0; i < S.count; i++) d->slice += S.device[i]->parent == d->parent;
        } else {
            d->index = S.boards++;
        }
        S.device[S.count++] = *current = d;
    } else if (!d) {
        return 0;
    } else if (!strcmp(word, "string")) {
        if (sscanf(rest, "%63s %n", key, &used) < 1) return 0;
        char *target = !strcmp(key, "uuid") ? d->uuid : !strcmp(key, "name") ? d->name
                     : !strcmp(key, "bus_id") ? d->bus_id : NULL;
        if (!target) return 0;
        snprintf(target, target == d->bus_id ? sizeof d->bus_id : sizeof d->uuid, "%s", rest + used);
    } else if (!strcmp(word, "step")) {
        double t, v;
        int which;
        if (sscanf(rest, "%63s %lf %lf", key, &t, &v) != 3 || (which = key_of(key)) < 0) return 0;
        line_t *l = &d->line[which];
        if (l->n == MAX_STEPS) return 0;
        l->t[l->n] = t;
        l->v[l->n++] = v;
    } else if (!strcmp(word, "error")) {
        error_t_ *e = &d->error[d->errors];
        if (d->errors == MAX_ERRORS ||
            sscanf(rest, "%63s %lf %d", e->function, &e->from, &e->code) != 3) return 0;
        d->errors++;
    } else if (!strcmp(word, "field")) {
        if (d->fields == MAX_FIELDS ||
            sscanf(rest, "%u %d", &d->field_id[d->fields], &d->field_code[d->fields]) != 2) return 0;
        d->fields++;
    } else if (!strcmp(word, "process")) {
        process_t *p = &d->process[d->processes];
        if (d->processes == MAX_PROCESSES ||
            sscanf(rest, "%63s %u %llu %lf %lf", key, &p->pid, &p->bytes, &p->from, &p->until) != 5)
            return 0;
        p->graphics = !strcmp(key, "graphics");
        d->processes++;
    } else if (!strcmp(word, "hang")) {
        if (sscanf(rest, "%lf %lf", &d->hang_from, &d->hang_until) != 2) return 0;
    } else {
        return 0;
    }
    return 1;
}

ret_t load_scenario(void) {
    const char *path = getenv("ORCHESTRATOR_NVML_SCENARIO");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return DRIVER_NOT_LOADED;
    for (unsigned i = 0; i < S.count; i++) free(S.device[i]);
    memset(&S, 0, sizeof S);
    char text[512];
    device_t *current = NULL;
    int good = 1;
    while (good && fgets(text, sizeof text, file))
        if (!(good = read_line(text, &current)))
            fprintf(stderr, "simulated NVML: %s: cannot read \"%s\"\n", path, text);
    fclose(file);
    if (!S.start_ns) S.start_ns = now_ns();
    return good ? S.init : UNKNOWN;
}
