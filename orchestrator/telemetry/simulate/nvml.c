/* A libnvidia-ml.so.1 that plays a scenario instead of talking to a driver.
 *
 * What each function answers comes from scenario.c. Names, structures and constants are those of
 * NVIDIA's published NVML API, as pynvml calls them; a function that no scenario needs is absent,
 * as it is from an older driver.
 */

#define _GNU_SOURCE
#include "scenario.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* Built with hidden visibility: only the API below may be seen by the process that loads it. */
#pragma GCC visibility push(default)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

ret_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    pthread_mutex_lock(&lock);
    ret_t code = S.references ? SUCCESS : load_scenario();
    if (code == SUCCESS) S.references++;
    pthread_mutex_unlock(&lock);
    return code;
}
ret_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
ret_t nvmlInit(void) { return nvmlInitWithFlags(0); }

ret_t nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    ret_t code = S.references ? SUCCESS : UNINITIALIZED;
    if (S.references) S.references--;
    pthread_mutex_unlock(&lock);
    return code;
}

const char *nvmlErrorString(ret_t code) {
    return code == SUCCESS ? "Success" : code == NOT_SUPPORTED ? "Not Supported"
         : code == GPU_IS_LOST ? "GPU is lost" : "Simulated error";
}

static ret_t text_out(char *out, unsigned length, const char *text) {
    if (!out) return INVALID_ARGUMENT;
    if (strlen(text) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return SUCCESS;
}

ret_t nvmlSystemGetDriverVersion(char *out, unsigned length) {
    return S.references ? text_out(out, length, S.driver) : UNINITIALIZED;
}
ret_t nvmlSystemGetNVMLVersion(char *out, unsigned length) {
    return S.references ? text_out(out, length, S.nvml) : UNINITIALIZED;
}
ret_t nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = S.cuda; return SUCCESS; }
ret_t nvmlSystemGetCudaDriverVersion(int *out) { *out = S.cuda; return SUCCESS; }

/* What every call on a device goes through: is it there, does it hang, does this function fail? */
static ret_t enter(const device_t *d, const char *function) {
    if (!S.references) return UNINITIALIZED;
    if (!d) return INVALID_ARGUMENT;
    const device_t *board = d->parent ? d->parent : d;
    double t = now_s();
    while (t >= board->hang_from && t < board->hang_until) {
        struct timespec pause = {0, 10000000};
        nanosleep(&pause, NULL);
        t = now_s();
    }
    for (const device_t *x = d; x; x = x->parent)
        for (int i = 0; i < x->errors; i++)
            if (t >= x->error[i].from &&
                (!strcmp(x->error[i].function, "*") || !strcmp(x->error[i].function, function)))
                return x->error[i].code;
    return SUCCESS;
}

#define ENTER(d) do { ret_t code_ = enter(d, __func__); if (code_) return code_; } while (0)
#define BOARD_ONLY(d) do { if ((d)->parent) return NOT_SUPPORTED; } while (0)
#define TELLS(d, key) do { if (!told(d, key)) return NOT_SUPPORTED; } while (0)

ret_t nvmlDeviceGetCount_v2(unsigned *count) {
    if (!S.references) return UNINITIALIZED;
    *count = S.boards;
    return SUCCESS;
}

ret_t nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t **out) {
    if (!S.references) return UNINITIALIZED;
    for (unsigned i = 0; i < S.count; i++)
        if (!S.device[i]->parent && S.device[i]->index == index) {
            ENTER(S.device[i]);
            *out = S.device[i];
            return SUCCESS;
        }
    return INVALID_ARGUMENT;
}

ret_t nvmlDeviceGetHandleByUUID(const char *uuid, device_t **out) {
    if (!S.references) return UNINITIALIZED;
    for (unsigned i = 0; i < S.count; i++)
        if (!strcmp(S.device[i]->uuid, uuid)) {
            ENTER(S.device[i]);
            *out = S.device[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

ret_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, device_t **out) {
    if (!S.references) return UNINITIALIZED;
    for (unsigned i = 0; i < S.count; i++)
        if (!S.device[i]->parent && !strcasecmp(S.device[i]->bus_id, bus_id)) {
            ENTER(S.device[i]);
            *out = S.device[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

ret_t nvmlDeviceGetUUID(device_t *d, char *out, unsigned length) {
    ENTER(d);
    return text_out(out, length, d->uuid);
}
ret_t nvmlDeviceGetName(device_t *d, char *out, unsigned length) {
    ENTER(d);
    return text_out(out, length, d->name);
}
ret_t nvmlDeviceGetIndex(device_t *d, unsigned *out) { ENTER(d); *out = d->index; return SUCCESS; }
ret_t nvmlDeviceGetMinorNumber(device_t *d, unsigned *out) {
    ENTER(d);
    *out = d->index;
    return SUCCESS;
}

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_t;

ret_t nvmlDeviceGetPciInfo_v3(device_t *d, pci_t *out) {
    ENTER(d);
    BOARD_ONLY(d);
    memset(out, 0, sizeof *out);
    snprintf(out->bus_id, sizeof out->bus_id, "%s", d->bus_id);
    sscanf(d->bus_id, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    snprintf(out->legacy, sizeof out->legacy, "%04X:%02X:%02X.0", out->domain & 0xffff,
             out->bus & 0xff, out->device & 0xff);
    return SUCCESS;
}

ret_t nvmlDeviceGetCudaComputeCapability(device_t *d, int *major, int *minor) {
    ENTER(d);
    *major = (int)at(d, CAP_MAJOR, 0);
    *minor = (int)at(d, CAP_MINOR, 0);
    return SUCCESS;
}

typedef struct { u64 total, free, used; } memory_t;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2_t;

static void memory(const device_t *d, memory_v2_t *out) {
    double t = now_s();
    out->total = (u64)at(d, TOTAL, t);
    out->reserved = (u64)at(d, RESERVED, t);
    out->used = (u64)at(d, USED, t);
    out->free = out->total - out->reserved - out->used;
}

ret_t nvmlDeviceGetMemoryInfo(device_t *d, memory_t *out) {
    ENTER(d);
    memory_v2_t m;
    memory(d, &m);
    *out = (memory_t){m.total, m.free, m.used + m.reserved};
    return SUCCESS;
}
ret_t nvmlDeviceGetMemoryInfo_v2(device_t *d, memory_v2_t *out) {
    ENTER(d);
    if (out->version != (sizeof *out | 2u << 24)) return 25;
    memory(d, out);
    return SUCCESS;
}

static ret_t number(const device_t *d, int key, double scale, unsigned *out) {
    TELLS(d, key);
    *out = (unsigned)(at(d, key, now_s()) * scale + 0.5);
    return SUCCESS;
}

#define NUMBER(function, key, scale) \
    ret_t function(device_t *d, unsigned *out) { \
        ENTER(d); \
        BOARD_ONLY(d); \
        return number(d, key, scale, out); \
    }
NUMBER(nvmlDeviceGetEnforcedPowerLimit, POWER_LIMIT, 1e3)
NUMBER(nvmlDeviceGetPowerManagementLimit, POWER_LIMIT, 1e3)
NUMBER(nvmlDeviceGetPerformanceState, PSTATE, 1)
NUMBER(nvmlDeviceGetPowerState, PSTATE, 1)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, PCIE_GEN, 1)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, PCIE_WIDTH, 1)

static int averages(const device_t *d) {
    double capability = at(d, CAP_MAJOR, 0) * 10 + at(d, CAP_MINOR, 0);
    return capability > 80; /* up to GA100 the reading is instantaneous */
}

ret_t nvmlDeviceGetPowerUsage(device_t *d, unsigned *out) {
    ENTER(d);
    BOARD_ONLY(d);
    TELLS(d, POWER);
    double t = now_s();
    *out = (unsigned)(1e3 * (averages(d) ? power_average_w(d, t) : at(d, POWER, t)));
    return SUCCESS;
}

ret_t nvmlDeviceGetTotalEnergyConsumption(device_t *d, u64 *out) {
    ENTER(d);
    BOARD_ONLY(d);
    TELLS(d, ENERGY_TICK);
    *out = energy_mj(d, now_s());
    return SUCCESS;
}

ret_t nvmlDeviceGetClockInfo(device_t *d, int type, unsigned *out) {
    ENTER(d);
    BOARD_ONLY(d);
    return number(d, type == 2 ? MEM_CLOCK : SM, 1, out);
}
ret_t nvmlDeviceGetMaxClockInfo(device_t *d, int type, unsigned *out) {
    ENTER(d);
    BOARD_ONLY(d);
    return number(d, type == 2 ? MEM_CLOCK : SM_MAX, 1, out);
}
ret_t nvmlDeviceGetClock(device_t *d, int type, int which, unsigned *out) {
    ENTER(d);
    BOARD_ONLY(d);
    if (type == 2) return number(d, MEM_CLOCK, 1, out);
    return number(d, which == 0 ? SM : which == 3 ? SM_MAX : SM_APP, 1, out);
}

ret_t nvmlDeviceGetTemperature(device_t *d, int sensor, unsigned *out) {
    ENTER(d);
    BOARD_ONLY(d);
    return sensor ? INVALID_ARGUMENT : number(d, TEMPERATURE, 1, out);
}

typedef struct { unsigned gpu, memory; } utilization_t;
ret_t nvmlDeviceGetUtilizationRates(device_t *d, utilization_t *out) {
    ENTER(d);
    BOARD_ONLY(d);
    TELLS(d, UTIL);
    if (at(d, MIG, 0)) return NOT_SUPPORTED;
    out->gpu = (unsigned)(at(d, UTIL, now_s()) * 100 + 0.5);
    out->memory = (unsigned)(at(d, MEM_UTIL, now_s()) * 100 + 0.5);
    return SUCCESS;
}

ret_t nvmlDeviceGetCurrentClocksEventReasons(device_t *d, u64 *out) {
    ENTER(d);
    BOARD_ONLY(d);
    TELLS(d, REASONS);
    *out = (u64)at(d, REASONS, now_s());
    return SUCCESS;
}
ret_t nvmlDeviceGetCurrentClocksThrottleReasons(device_t *d, u64 *out) {
    ENTER(d);
    BOARD_ONLY(d);
    TELLS(d, REASONS);
    *out = (u64)at(d, REASONS, now_s());
    return SUCCESS;
}

typedef struct { u64 reference_time, violation_time; } violation_t;
ret_t nvmlDeviceGetViolationStatus(device_t *d, int policy, violation_t *out) {
    ENTER(d);
    BOARD_ONLY(d);
    TELLS(d, REASONS);
    if (policy > 1) return NOT_SUPPORTED;
    out->reference_time = now_ns() / 1000;
    out->violation_time = throttled_ns(d, policy == 0 ? 0x4 : 0x60, now_s());
    return SUCCESS;
}

ret_t nvmlDeviceGetTotalEccErrors(device_t *d, int kind, int counter, u64 *out) {
    (void)counter;
    ENTER(d);
    BOARD_ONLY(d);
    int key = kind ? ECC_UNCORRECTED : ECC_CORRECTED;
    TELLS(d, key);
    *out = (u64)at(d, key, now_s());
    return SUCCESS;
}

typedef struct { unsigned pid; u64 bytes; unsigned gpu_instance, compute_instance; } process_info_t;

static ret_t processes(const device_t *d, int graphics, unsigned *count, process_info_t *out) {
    double t = now_s();
    unsigned found = 0, room = out ? *count : 0;
    for (int i = 0; i < d->processes; i++) {
        const process_t *p = &d->process[i];
        if (p->graphics != graphics || t < p->from || t >= p->until) continue;
        if (found < room)
            out[found] = (process_info_t){p->pid, p->bytes ? p->bytes : ~0ull, ~0u, ~0u};
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

#define PROCESSES(function, graphics) \
    ret_t function(device_t *d, unsigned *count, process_info_t *out) { \
        ENTER(d); \
        return processes(d, graphics, count, out); \
    }
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, 0)
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, 0)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, 1)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, 1)

typedef struct {
    unsigned id, scope;
    long long timestamp_us, latency_us;
    unsigned type;
    ret_t code;
    union { double d; unsigned u; u64 ull; } value;
} field_t;

enum { T_UINT = 1, T_ULL = 3 };

/* The throttle counters moved from 251 to 269 with driver 580.82; ids 251 to 273 of the wrong
 * driver mean power smoothing and answer something else, as on a real one. */
static u64 throttle_bits(unsigned id) {
    unsigned first = S.driver_number >= 580.82 ? 269 : S.driver_number >= 570 ? 251 : 0;
    if (!first) return 0;
    return id == first ? 0x20 : id == first + 1 ? 0x40 : id == first + 2 ? 0x80 : 0;
}

static void field(const device_t *d, field_t *f) {
    double t = now_s();
    f->timestamp_us = (long long)(now_ns() / 1000);
    f->latency_us = 0;
    f->type = T_ULL;
    f->code = SUCCESS;
    f->value.ull = 0;
    for (int i = 0; i < d->fields; i++)
        if (d->field_id[i] == f->id) {
            f->code = d->field_code[i];
            return;
        }
    int power = told(d, POWER), reasons = told(d, REASONS), modern = averages(d);
    if (f->id == 83 && told(d, ENERGY_TICK)) {
        f->value.ull = energy_mj(d, t);
    } else if (f->id == 82 && told(d, MEM_TEMPERATURE)) {
        f->type = T_UINT;
        f->value.u = (unsigned)at(d, MEM_TEMPERATURE, t);
    } else if (f->id == 186 && power && modern) {
        f->type = T_UINT;
        f->value.u = (unsigned)(1e3 * at(d, POWER, t) + 0.5);
    } else if (f->id == 185 && power && modern) {
        f->type = T_UINT;
        f->value.u = (unsigned)(1e3 * power_average_w(d, t));
    } else if (f->id == 74 && reasons) {
        f->value.ull = throttled_ns(d, 0x4, t);
    } else if (f->id == 75 && reasons) {
        f->value.ull = throttled_ns(d, 0x60, t);
    } else if (f->id == 76 && reasons) {
        f->value.ull = throttled_ns(d, 0x10, t);
    } else if (reasons && throttle_bits(f->id)) {
        f->value.ull = throttled_ns(d, throttle_bits(f->id), t);
    } else if (f->id >= 251 && f->id <= 273 && S.driver_number >= 570) {
        f->value.ull = (u64)(t * 5e8); /* power smoothing: grows, and is no throttle time */
    } else {
        f->code = NOT_SUPPORTED;
    }
}

ret_t nvmlDeviceGetFieldValues(device_t *d, int count, field_t *fields) {
    ENTER(d);
    if (count < 1 || !fields) return INVALID_ARGUMENT;
    BOARD_ONLY(d);
    for (int i = 0; i < count; i++) field(d, &fields[i]);
    return SUCCESS;
}

ret_t nvmlDeviceGetMigMode(device_t *d, unsigned *current, unsigned *pending) {
    ENTER(d);
    BOARD_ONLY(d);
    TELLS(d, MIG);
    *current = *pending = (unsigned)at(d, MIG, 0);
    return SUCCESS;
}
ret_t nvmlDeviceIsMigDeviceHandle(device_t *d, unsigned *out) {
    ENTER(d);
    *out = d->parent != NULL;
    return SUCCESS;
}
ret_t nvmlDeviceGetMaxMigDeviceCount(device_t *d, unsigned *out) {
    ENTER(d);
    *out = 7;
    return SUCCESS;
}
ret_t nvmlDeviceGetMigDeviceHandleByIndex(device_t *d, unsigned index, device_t **out) {
    ENTER(d);
    for (unsigned i = 0; i < S.count; i++)
        if (S.device[i]->parent == d && S.device[i]->slice == index) {
            *out = S.device[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}
ret_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t *d, device_t **out) {
    ENTER(d);
    if (!d->parent) return INVALID_ARGUMENT;
    *out = d->parent;
    return SUCCESS;
}
ret_t nvmlDeviceGetGpuInstanceId(device_t *d, unsigned *out) {
    ENTER(d);
    if (!d->parent) return NOT_SUPPORTED;
    *out = d->slice + 1;
    return SUCCESS;
}
ret_t nvmlDeviceGetComputeInstanceId(device_t *d, unsigned *out) {
    ENTER(d);
    if (!d->parent) return NOT_SUPPORTED;
    *out = 0;
    return SUCCESS;
}
