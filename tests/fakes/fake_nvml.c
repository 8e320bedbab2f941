/* A libnvidia-ml.so.1 that answers from a text file of key=value lines, named by FAKE_NVML.
 *
 * Keys: rc.init, driver, count, and per GPU gpuN.name .uuid .total .free .reserved .cc .bus
 * .display .mem_rc .handle_rc .mig (number of slices) .computing .drawing (number of processes)
 * .throttle .temperature .bus_width .memory_mhz .device_id .crash, gpuNmM.* for slice M of GPU N.
 * A device handle is 1 + index, a slice's is 1000 * (1 + index) + slice.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int status;
typedef void *device;
typedef unsigned long long u64;

enum { OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3 };

static int lookup(const char *key, char *value, size_t size) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512];
    int found = 0;
    while (file && !found && fgets(line, sizeof line, file)) {
        char *equals = strchr(line, '=');
        if (!equals) continue;
        *equals = 0;
        if (strcmp(line, key)) continue;
        snprintf(value, size, "%s", equals + 1);
        value[strcspn(value, "\n")] = 0;
        found = 1;
    }
    if (file) fclose(file);
    return found;
}

static u64 number(const char *key, u64 otherwise) {
    char value[128];
    return lookup(key, value, sizeof value) ? strtoull(value, NULL, 0) : otherwise;
}

static void key_of(device handle, const char *name, char *key, size_t size) {
    size_t id = (size_t) handle;
    if (id >= 1000)
        snprintf(key, size, "gpu%zum%zu.%s", id / 1000 - 1, id % 1000, name);
    else
        snprintf(key, size, "gpu%zu.%s", id - 1, name);
}

static u64 device_number(device handle, const char *name, u64 otherwise) {
    char key[64];
    key_of(handle, name, key, sizeof key);
    return number(key, otherwise);
}

static void device_text(device handle, const char *name, char *out, size_t size, const char *otherwise) {
    char key[64];
    key_of(handle, name, key, sizeof key);
    if (!lookup(key, out, size)) snprintf(out, size, "%s", otherwise);
}

status nvmlInitWithFlags(unsigned flags) { (void) flags; return (status) number("rc.init", 0); }
status nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
status nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(status code) { (void) code; return "fake error"; }

status nvmlSystemGetDriverVersion(char *out, unsigned size) {
    if (!lookup("driver", out, size)) snprintf(out, size, "580.00");
    return OK;
}

status nvmlDeviceGetCount_v2(unsigned *count) { *count = (unsigned) number("count", 0); return (status) number("rc.count", 0); }

status nvmlDeviceGetHandleByIndex_v2(unsigned index, device *out) {
    if (index >= number("count", 0)) return INVALID_ARGUMENT;
    *out = (device) (size_t) (index + 1);
    return (status) device_number(*out, "handle_rc", 0);
}

status nvmlDeviceGetName(device handle, char *out, unsigned size) {
    device_text(handle, "name", out, size, "Fake GPU");
    return OK;
}

status nvmlDeviceGetUUID(device handle, char *out, unsigned size) {
    device_text(handle, "uuid", out, size, "GPU-0");
    return OK;
}

typedef struct { u64 total, free, used; } memory_v1;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2;

status nvmlDeviceGetMemoryInfo_v2(device handle, memory_v2 *out) {
    status code = (status) device_number(handle, "mem_rc", 0);
    if (code) return code;
    out->total = device_number(handle, "total", 0);
    out->reserved = device_number(handle, "reserved", 0);
    out->free = device_number(handle, "free", 0);
    out->used = device_number(handle, "used", out->total - out->free - out->reserved);
    return OK;
}

status nvmlDeviceGetMemoryInfo(device handle, memory_v1 *out) {
    memory_v2 both;
    status code = nvmlDeviceGetMemoryInfo_v2(handle, &both);
    if (code) return code;
    out->total = both.total;
    out->free = both.free;
    out->used = both.used;
    return OK;
}

status nvmlDeviceGetMigMode(device handle, unsigned *current, unsigned *pending) {
    u64 slices = device_number(handle, "mig", 0);
    if (!slices) return NOT_SUPPORTED;
    *current = *pending = 1;
    return OK;
}

status nvmlDeviceGetMaxMigDeviceCount(device handle, unsigned *count) {
    *count = (unsigned) device_number(handle, "mig", 0) + 1;
    return OK;
}

status nvmlDeviceGetMigDeviceHandleByIndex(device handle, unsigned index, device *out) {
    if (index >= device_number(handle, "mig", 0)) return 6;
    *out = (device) (1000 * (size_t) handle + index);
    return OK;
}

status nvmlDeviceGetCudaComputeCapability(device handle, int *major, int *minor) {
    int both = (int) device_number(handle, "cc", 89);
    *major = both / 10;
    *minor = both % 10;
    return OK;
}

status nvmlDeviceGetDisplayActive(device handle, int *out) {
    *out = (int) device_number(handle, "display", 0);
    return OK;
}

typedef struct { unsigned pid; u64 memory; unsigned gpu_instance, compute_instance; } process;

static status processes(device handle, const char *name, unsigned first, unsigned *count, process *out) {
    unsigned there = (unsigned) device_number(handle, name, 0), room = *count;
    *count = there;
    if (there > room) return 7;
    for (unsigned index = 0; out && index < there; index++) out[index] = (process) {first + index, 0, 0, 0};
    return OK;
}

status nvmlDeviceGetComputeRunningProcesses_v3(device handle, unsigned *count, process *out) {
    if (device_number(handle, "crash", 0)) abort();
    return processes(handle, "computing", 100, count, out);
}

status nvmlDeviceGetGraphicsRunningProcesses_v3(device handle, unsigned *count, process *out) {
    return processes(handle, "drawing", 200, count, out);
}

status nvmlDeviceGetCurrentClocksThrottleReasons(device handle, u64 *out) {
    *out = device_number(handle, "throttle", 0);
    return OK;
}

status nvmlDeviceGetTemperature(device handle, int sensor, unsigned *out) {
    (void) sensor;
    *out = (unsigned) device_number(handle, "temperature", 40);
    return OK;
}

status nvmlDeviceGetMemoryBusWidth(device handle, unsigned *out) {
    *out = (unsigned) device_number(handle, "bus_width", 384);
    return OK;
}

status nvmlDeviceGetMaxClockInfo(device handle, int kind, unsigned *out) {
    (void) kind;
    *out = (unsigned) device_number(handle, "memory_mhz", 10501);
    return OK;
}

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} pci;

status nvmlDeviceGetPciInfo_v3(device handle, pci *out) {
    memset(out, 0, sizeof *out);
    out->id = (unsigned) device_number(handle, "device_id", 0x268410de);
    device_text(handle, "bus", out->bus_id, sizeof out->bus_id, "00000000:01:00.0");
    return OK;
}
