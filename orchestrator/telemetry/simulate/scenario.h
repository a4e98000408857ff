/* A scenario in memory: its devices, and their quantities as steps over time. See scenario.c. */

#ifndef SCENARIO_H
#define SCENARIO_H

typedef int ret_t;
typedef unsigned long long u64;
enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, UNKNOWN = 999
};

enum { MAX_DEVICES = 64, MAX_STEPS = 64, MAX_ERRORS = 32, MAX_FIELDS = 64, MAX_PROCESSES = 16 };

typedef struct { int n; double t[MAX_STEPS], v[MAX_STEPS]; } line_t;

enum {
    POWER, POWER_LIMIT, SM, SM_MAX, SM_APP, MEM_CLOCK, TEMPERATURE, MEM_TEMPERATURE, PSTATE, UTIL,
    MEM_UTIL, TOTAL, RESERVED, USED, REASONS, PCIE_GEN, PCIE_WIDTH, ECC_CORRECTED,
    ECC_UNCORRECTED, ENERGY_TICK, ENERGY_BASE, ENERGY_MODULUS, ENERGY_RESET, CAP_MAJOR, CAP_MINOR,
    MIG, KEY_COUNT
};

typedef struct { char function[64]; double from; ret_t code; } error_t_;
typedef struct { int graphics; unsigned pid; u64 bytes; double from, until; } process_t;

typedef struct device {
    struct device *parent;
    unsigned index, slice;
    char uuid[96], name[96], bus_id[32];
    line_t line[KEY_COUNT];
    error_t_ error[MAX_ERRORS];
    unsigned field_id[MAX_FIELDS];
    ret_t field_code[MAX_FIELDS];
    process_t process[MAX_PROCESSES];
    int errors, fields, processes;
    double hang_from, hang_until;
} device_t;

typedef struct {
    int references;
    ret_t init;
    char driver[80], nvml[80];
    int cuda;
    double driver_number;
    u64 start_ns;
    device_t *device[MAX_DEVICES];
    unsigned count, boards;
} scenario_t;
extern scenario_t S;

ret_t load_scenario(void);

u64 now_ns(void);
double now_s(void); /* since the scenario began */

int told(const device_t *d, int key);
double at(const device_t *d, int key, double t);
u64 energy_mj(const device_t *d, double t);
double power_average_w(const device_t *d, double t);
u64 throttled_ns(const device_t *d, u64 bits, double t);

#endif
