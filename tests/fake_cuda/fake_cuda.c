/* A fake libcuda.so.1 for tests on machines without a GPU.

   Device memory is host memory, and work put on a stream stays queued until something waits for it,
   so a forgotten synchronisation shows as stale data on every run. Wrong use gets the real driver's
   error codes, and an error also where the real driver leaves the outcome open. There are no
   kernels: what a test wants computed in stream order goes through cuLaunchHostFunc. Not offered:
   the default stream (handle 0) and captures that span streams. fake_* functions are for tests. */

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ERRORS(X)                                                                                \
    X(INVALID_VALUE, 1) X(OUT_OF_MEMORY, 2) X(NOT_INITIALIZED, 3) X(NO_DEVICE, 100)              \
    X(INVALID_DEVICE, 101) X(INVALID_CONTEXT, 201) X(INVALID_HANDLE, 400) X(ILLEGAL_STATE, 401)  \
    X(NOT_FOUND, 500) X(NOT_READY, 600) X(ILLEGAL_ADDRESS, 700) X(CONTEXT_IS_DESTROYED, 709)     \
    X(LAUNCH_FAILED, 719) X(NOT_PERMITTED, 800) X(NOT_SUPPORTED, 801)                            \
    X(STREAM_CAPTURE_UNSUPPORTED, 900) X(STREAM_CAPTURE_INVALIDATED, 901)                        \
    X(STREAM_CAPTURE_ISOLATION, 905) X(CAPTURED_EVENT, 907) X(STREAM_CAPTURE_WRONG_THREAD, 908)  \
    X(UNKNOWN, 999)
#define AS_ENUM(name, code) name = code,
enum { SUCCESS, ERRORS(AS_ENUM) };

typedef int CUresult, CUdevice;
typedef uint64_t CUdeviceptr;
typedef void *CUcontext, *CUstream, *CUevent, *CUgraph, *CUgraphExec, *CUgraphNode;
typedef void (*CUhostFn)(void *);

enum { MAX_DEVICES = 8, STACK_DEPTH = 32, ALIGNMENT = 512, QUARANTINE_BYTES = 64 << 20 };
enum { NON_BLOCKING = 1, DEVICEMAP = 2, DISABLE_TIMING = 2 }; /* flags: stream, memory, event */
enum { MODE_GLOBAL, MODE_THREAD_LOCAL, MODE_RELAXED };        /* of a capture */

/* ---- State ---- */

typedef uintptr_t Id; /* handles are numbers never used again, so that a stale one is noticed */

typedef struct Operation {
    struct Operation *next;
    enum { COPY, FILL, CALL, WAIT, MARK } kind;
    Id number;                /* order of issue; as a graph node, its handle */
    unsigned char *to, *from; /* COPY, FILL */
    Id to_block, from_block;  /* the blocks these lie in; 0: ordinary host memory */
    size_t size;
    int value;
    void *staging;     /* COPY: the source as it was at issue, freed with the operation */
    CUhostFn function; /* CALL */
    void *argument;
    Id stream, until; /* WAIT: for this stream's operations up to this number */
} Operation;

typedef struct Object {
    struct Object *next;
    enum { STREAM, EVENT, GRAPH, EXEC } kind;
    Id id, context;
    Operation *work; /* STREAM: what has not run yet; GRAPH, EXEC: the nodes */
    bool blocking;   /* STREAM: synchronous copies wait for it */
    bool busy;       /* STREAM: a thread is running its first operation */
    bool destroyed;  /* STREAM: no handle any more, but its work can still be waited for */
    enum { NOT_CAPTURING, CAPTURING, INVALIDATED } capture;
    Id capture_id;
    int mode;
    pthread_t thread;
    Operation *captured;
    Id stream, number; /* EVENT: the mark it was last recorded as; 0: none */
    Id recorded_in;    /* EVENT: or the capture it was last recorded in */
    bool timed;
} Object;

typedef struct Block {
    struct Block *next;
    Id id, context, freed; /* freed: 0, or the order of freeing */
    unsigned char *base;
    size_t size;
    bool device, mapped;
} Block;

typedef struct {
    Id context; /* the primary context, 0 while nobody retains it */
    int retains;
    CUresult error; /* sticky, as after an illegal address on a real device */
} Device;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t progress = PTHREAD_COND_INITIALIZER;
static bool initialized;
static Id last_id = 0x1000; /* clear of the special stream handles 0, 1 and 2 */
static Object *objects;
static Block *blocks;
static size_t peak_device_bytes;
static Device devices[MAX_DEVICES];
static struct { int count, major, minor, integrated, multiprocessors; char name[128]; size_t total; }
    setup;
static _Thread_local Id context_stack[STACK_DEPTH];
static _Thread_local int stack_depth;
static _Thread_local bool in_host_function;

/* ---- Every call: lock, count, injected failure, what it needs ---- */

enum needs { NOTHING, INIT, CONTEXT };
static CUresult enter(const char *function, enum needs needs);

static void unlock(const int *held) { (void)held, pthread_mutex_unlock(&mutex); }

#define LOCKED __attribute__((cleanup(unlock), unused)) const int held = pthread_mutex_lock(&mutex)
#define REQUIRE(condition, code) do { if (!(condition)) return code; } while (0)
#define TRY(call) do { const CUresult code_ = (call); if (code_) return code_; } while (0)
#define ENTER(needs) LOCKED; TRY(enter(__func__, needs))
#define FIND(variable, kind, handle) \
    Object *variable = find(kind, handle); REQUIRE(variable, INVALID_HANDLE)
#define ENTER_WITH(variable, kind, handle) ENTER(CONTEXT); FIND(variable, kind, handle)

static Device *device_of(Id context) {
    for (Device *device = devices; device < devices + MAX_DEVICES; device++)
        if (context && device->context == context) return device;
    return NULL;
}

static Id current(void) { return stack_depth ? context_stack[stack_depth - 1] : 0; }

static CUresult device_error(void) {
    const Device *device = device_of(current());
    return device ? device->error : CONTEXT_IS_DESTROYED;
}

static void *zeroed(size_t size) {
    void *memory = calloc(1, size);
    if (!memory) abort();
    return memory;
}

/* ---- Memory ---- */

/* Whether a range may be used: inside one live block, or outside all of them (*block is NULL). */
static bool usable(const void *address, size_t size, Block **block) {
    Block *b = blocks;
    while (b && (uintptr_t)address - (uintptr_t)b->base >= b->size) b = b->next;
    *block = b;
    if (!b) return address != NULL;
    const size_t offset = (uintptr_t)address - (uintptr_t)b->base;
    return !b->freed && device_of(b->context) && size <= b->size - offset;
}

static bool still_in(const void *address, size_t size, Id id) {
    Block *block;
    return usable(address, size, &block) && (block ? block->id : 0) == id;
}

static size_t live_bytes(bool on_device, Id context) { /* context 0: all */
    size_t sum = 0;
    for (const Block *b = blocks; b; b = b->next)
        if (!b->freed && b->device == on_device && (!context || b->context == context))
            sum += b->size;
    return sum;
}

static size_t free_device_bytes(void) {
    const size_t used = live_bytes(true, current());
    return used < setup.total ? setup.total - used : 0;
}

static CUresult allocate(size_t size, bool on_device, bool mapped, void **address) {
    REQUIRE(size, INVALID_VALUE);
    REQUIRE(size <= (on_device ? free_device_bytes() : SIZE_MAX / 2), OUT_OF_MEMORY);
    void *base = aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    REQUIRE(base, OUT_OF_MEMORY);
    Block *block = zeroed(sizeof *block);
    *block = (Block){blocks, ++last_id, current(), 0, base, size, on_device, mapped};
    blocks = block;
    *address = memset(base, 0xCD, size);
    const size_t live = live_bytes(true, 0);
    if (live > peak_device_bytes) peak_device_bytes = live;
    return SUCCESS;
}

static void forget(Block *block) {
    Block **link = &blocks;
    while (*link != block) link = &(*link)->next;
    *link = block->next;
    free(block->base);
    free(block);
}

/* Freed memory stays readable for a while: late readers see 0xDD, and copies are refused. */
static void quarantine(Block *block) {
    memset(block->base, 0xDD, block->size);
    block->freed = ++last_id;
    for (;;) {
        size_t bytes = 0;
        Block *oldest = NULL;
        for (Block *b = blocks; b; b = b->next) {
            if (!b->freed) continue;
            bytes += b->size;
            if (!oldest || b->freed < oldest->freed) oldest = b;
        }
        if (bytes <= QUARANTINE_BYTES) return;
        forget(oldest);
    }
}

/* ---- Objects and operations ---- */

static Object *any_object(int kind, Id id) {
    Object *object = objects;
    while (object && (object->id != id || (int)object->kind != kind)) object = object->next;
    return object;
}

/* The object behind a caller's handle, or NULL: it must be alive, and so must its context. */
static Object *find(int kind, const void *handle) {
    Object *object = any_object(kind, (Id)handle);
    return object && !object->destroyed && device_of(object->context) ? object : NULL;
}

static Object *create(int kind, Id context) {
    Object *object = zeroed(sizeof *object);
    *object = (Object){.next = objects, .kind = kind, .id = ++last_id, .context = context};
    return objects = object;
}

static void free_operations(Operation *operation) {
    while (operation) {
        Operation *next = operation->next;
        free(operation->staging);
        free(operation);
        operation = next;
    }
}

static void destroy(Object *object) {
    Object **link = &objects;
    while (*link != object) link = &(*link)->next;
    *link = object->next;
    free_operations(object->work);
    free_operations(object->captured);
    free(object);
}

static void append(Operation **list, const Operation *model) {
    while (*list) list = &(*list)->next;
    *list = zeroed(sizeof **list);
    **list = *model;
    (*list)->next = NULL;
    (*list)->number = ++last_id;
}

static CUresult submit(Object *stream, const Operation *model) {
    REQUIRE(stream->capture != INVALIDATED, STREAM_CAPTURE_INVALIDATED);
    append(stream->capture ? &stream->captured : &stream->work, model);
    return SUCCESS;
}

static void run_until(Id stream, Id number);

static void execute(const Operation *operation, Id context) {
    if (operation->kind == WAIT) run_until(operation->stream, operation->until);
    Device *device = device_of(context);
    if (!device || device->error) return; /* nothing more runs on a broken device */
    if (operation->kind == CALL) {
        in_host_function = true;
        pthread_mutex_unlock(&mutex);
        operation->function(operation->argument);
        pthread_mutex_lock(&mutex);
        in_host_function = false;
    } else if (operation->kind == COPY || operation->kind == FILL) {
        const bool fill = operation->kind == FILL;
        const void *from = operation->staging ? operation->staging : operation->from;
        /* When a graph is replayed, its blocks may be gone. */
        if (!still_in(operation->to, operation->size, operation->to_block) ||
            (!fill && !still_in(from, operation->size, operation->from_block)))
            device->error = ILLEGAL_ADDRESS;
        else if (fill)
            memset(operation->to, operation->value, operation->size);
        else
            memmove(operation->to, from, operation->size);
    }
}

/* Runs a stream's operations up to a number. Waits only name operations that were issued earlier,
   so this cannot go round in circles. The lock is free while a host function runs: everything is
   looked up anew after each operation. */
static void run_until(Id id, Id number) {
    Object *stream;
    while ((stream = any_object(STREAM, id)) && stream->work && stream->work->number <= number) {
        if (stream->busy) {
            pthread_cond_wait(&progress, &mutex);
            continue;
        }
        Operation *operation = stream->work;
        stream->busy = true;
        execute(operation, stream->context);
        stream->busy = false;
        stream->work = operation->next;
        operation->next = NULL;
        free_operations(operation);
        if (stream->destroyed && !stream->work) destroy(stream);
        pthread_cond_broadcast(&progress);
    }
}

static CUresult wait_for(Id stream, Id number) {
    run_until(stream, number);
    return device_error();
}

static CUresult wait_for_all(bool blocking_only) {
    const Id now = last_id;
    for (Object *s = objects; s;) {
        const bool included = s->kind == STREAM && (s->blocking || !blocking_only);
        if (included && s->context == current() && s->work && s->work->number <= now) {
            run_until(s->id, now);
            s = objects; /* the list may have changed */
        } else {
            s = s->next;
        }
    }
    return device_error();
}

/* Asking is not waiting, but a loop of questions must end: each "not ready" runs one operation. */
static CUresult query(Id id, Id number) {
    const Object *stream = any_object(STREAM, id);
    if (!stream || !stream->work || stream->work->number > number) return device_error();
    if (!stream->busy) run_until(id, stream->work->number);
    return NOT_READY;
}

/* Whether a capture forbids this thread calls that are unsafe during one; if so it is spoiled. */
static bool spoils_capture(void) {
    bool any = false;
    for (Object *stream = objects; stream; stream = stream->next) {
        const bool own = pthread_equal(stream->thread, pthread_self());
        if (!stream->capture || stream->mode == MODE_RELAXED) continue;
        if (stream->mode == MODE_THREAD_LOCAL && !own) continue;
        stream->capture = INVALIDATED;
        any = true;
    }
    return any;
}

static bool spoils_own_capture(Object *stream) {
    if (stream->capture) stream->capture = INVALIDATED;
    return stream->capture;
}

#define REQUIRE_NO_CAPTURE REQUIRE(!spoils_capture(), STREAM_CAPTURE_UNSUPPORTED)
#define REQUIRE_NO_OWN_CAPTURE(stream) \
    REQUIRE(!spoils_own_capture(stream), STREAM_CAPTURE_UNSUPPORTED)

/* ---- Driver: start, errors, devices ---- */

CUresult cuInit(unsigned flags) {
    ENTER(NOTHING);
    REQUIRE(!flags, INVALID_VALUE);
    REQUIRE(setup.count, NO_DEVICE);
    initialized = true;
    return SUCCESS;
}
CUresult cuDriverGetVersion(int *version) { ENTER(NOTHING); *version = 13000; return SUCCESS; }

#define AS_NAME(name, code) case code: return "CUDA_ERROR_" #name;
static const char *error_name(CUresult error) {
    switch (error) { case SUCCESS: return "CUDA_SUCCESS"; ERRORS(AS_NAME) default: return NULL; }
}
CUresult cuGetErrorName(CUresult error, const char **name) {
    ENTER(NOTHING);
    return (*name = error_name(error)) ? SUCCESS : INVALID_VALUE;
}
CUresult cuGetErrorString(CUresult error, const char **text) {
    ENTER(NOTHING);
    return (*text = error_name(error)) ? SUCCESS : INVALID_VALUE;
}

#define ENTER_DEVICE(device) \
    ENTER(INIT); REQUIRE((device) >= 0 && (device) < setup.count, INVALID_DEVICE)

CUresult cuDeviceGetCount(int *count) { ENTER(INIT); *count = setup.count; return SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER_DEVICE(ordinal);
    *device = ordinal;
    return SUCCESS;
}
CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    ENTER_DEVICE(device);
    REQUIRE(length > 0, INVALID_VALUE);
    snprintf(name, (size_t)length, "%s", setup.name);
    return SUCCESS;
}
CUresult cuDeviceGetUuid_v2(char *uuid, CUdevice device) {
    ENTER_DEVICE(device);
    memcpy(uuid, "fake-cuda-device", 16);
    uuid[15] = (char)device;
    return SUCCESS;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    ENTER_DEVICE(device);
    *bytes = setup.total;
    return SUCCESS;
}
CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    ENTER_DEVICE(device);
    REQUIRE(attribute > 0 && attribute < 256, INVALID_VALUE);
    switch (attribute) { /* CU_DEVICE_ATTRIBUTE_... */
        case 1: *value = 1024; break;              /* MAX_THREADS_PER_BLOCK */
        case 10: *value = 32; break;               /* WARP_SIZE */
        case 16: *value = setup.multiprocessors; break; /* MULTIPROCESSOR_COUNT */
        case 18: *value = setup.integrated; break; /* INTEGRATED */
        case 40: *value = 2; break;                /* ASYNC_ENGINE_COUNT */
        case 75: *value = setup.major; break;      /* COMPUTE_CAPABILITY_MAJOR */
        case 76: *value = setup.minor; break;      /* COMPUTE_CAPABILITY_MINOR */
        case 19: case 41: *value = 1; break;       /* CAN_MAP_HOST_MEMORY, UNIFIED_ADDRESSING */
        default: *value = 0;
    }
    return SUCCESS;
}

/* ---- Driver: contexts ---- */

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER_DEVICE(device);
    Device *d = &devices[device];
    if (!d->retains++) *d = (Device){++last_id, 1, SUCCESS};
    *context = (CUcontext)d->context;
    return SUCCESS;
}

/* With the last release everything in the context is gone for its users. What they had not freed or
   waited for still counts as live: to the tests it is a leak. */
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER_DEVICE(device);
    REQUIRE(devices[device].retains, INVALID_CONTEXT);
    if (!--devices[device].retains) devices[device].context = 0;
    return SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *c) { ENTER(INIT); *c = (CUcontext)current(); return SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) {
    ENTER(INIT);
    REQUIRE(!context || device_of((Id)context), INVALID_CONTEXT);
    if (stack_depth) stack_depth--;
    if (context) context_stack[stack_depth++] = (Id)context;
    return SUCCESS;
}
CUresult cuCtxPushCurrent_v2(CUcontext context) {
    ENTER(INIT);
    REQUIRE(device_of((Id)context) && stack_depth < STACK_DEPTH, INVALID_CONTEXT);
    context_stack[stack_depth++] = (Id)context;
    return SUCCESS;
}
CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    ENTER(INIT);
    REQUIRE(stack_depth, INVALID_CONTEXT);
    if (context) *context = (CUcontext)current();
    stack_depth--;
    return SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice *device) {
    ENTER(CONTEXT);
    *device = (CUdevice)(device_of(current()) - devices);
    return SUCCESS;
}
CUresult cuCtxSynchronize(void) {
    ENTER(CONTEXT);
    REQUIRE_NO_CAPTURE;
    return wait_for_all(false);
}

/* ---- Driver: memory ---- */

CUresult cuMemGetInfo_v2(size_t *available, size_t *total) {
    ENTER(CONTEXT);
    *total = setup.total;
    *available = free_device_bytes();
    return SUCCESS;
}
CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t size) {
    ENTER(CONTEXT);
    REQUIRE_NO_CAPTURE;
    void *address;
    TRY(allocate(size, true, false, &address));
    *pointer = (uintptr_t)address;
    return SUCCESS;
}
CUresult cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    ENTER(CONTEXT);
    REQUIRE(flags < 8, INVALID_VALUE);
    REQUIRE_NO_CAPTURE;
    return allocate(size, false, flags & DEVICEMAP, address);
}
CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *pointer, void *address, unsigned flags) {
    ENTER(CONTEXT);
    Block *block;
    REQUIRE(!flags && usable(address, 0, &block) && block && block->mapped, INVALID_VALUE);
    *pointer = (uintptr_t)address;
    return SUCCESS;
}

static bool freeable(void *address, bool on_device, Block **block) {
    const bool found = usable(address, 0, block) && *block;
    return found && (*block)->base == address && (*block)->device == on_device;
}
static CUresult release(void *address, bool on_device) {
    Block *block;
    REQUIRE_NO_CAPTURE;
    REQUIRE(freeable(address, on_device, &block), INVALID_VALUE);
    TRY(wait_for_all(false));
    REQUIRE(freeable(address, on_device, &block), INVALID_VALUE); /* the lock was free meanwhile */
    quarantine(block);
    return SUCCESS;
}
CUresult cuMemFree_v2(CUdeviceptr p) { ENTER(CONTEXT); return release((void *)(uintptr_t)p, true); }
CUresult cuMemFreeHost(void *address) { ENTER(CONTEXT); return release(address, false); }

enum side { HOST_SIDE = 1, DEVICE_SIDE = 2, ANY_SIDE = 3 };

static bool on_side(const Block *block, enum side side) {
    const bool device = block && (block->device || block->mapped), host = !block || !block->device;
    return ((side & DEVICE_SIDE) && device) || ((side & HOST_SIDE) && host);
}

static CUresult check_copy(Operation *copy, enum side to_side, enum side from_side) {
    Block *to, *from;
    REQUIRE(usable(copy->to, copy->size, &to) && on_side(to, to_side), INVALID_VALUE);
    REQUIRE(usable(copy->from, copy->size, &from) && on_side(from, from_side), INVALID_VALUE);
    copy->to_block = to ? to->id : 0;
    copy->from_block = from ? from->id : 0;
    return SUCCESS;
}

static CUresult copy_now(Operation copy, enum side to_side, enum side from_side) {
    REQUIRE_NO_CAPTURE;
    TRY(check_copy(&copy, to_side, from_side));
    TRY(wait_for_all(true));
    execute(&copy, current());
    return device_error();
}

/* From ordinary host memory the real driver takes a copy before it returns, for such memory as a
   target it waits: neither may be touched later, when its owner may have let go of it. */
static CUresult copy_async(Operation copy, enum side to_side, enum side from_side, CUstream s) {
    FIND(stream, STREAM, s);
    TRY(check_copy(&copy, to_side, from_side));
    REQUIRE(!stream->capture || (copy.to_block && copy.from_block), INVALID_VALUE);
    if (!copy.to_block) REQUIRE_NO_CAPTURE;
    if (!copy.from_block) {
        copy.staging = malloc(copy.size + 1);
        REQUIRE(copy.staging, OUT_OF_MEMORY);
        memcpy(copy.staging, copy.from, copy.size);
    }
    TRY(submit(stream, &copy)); /* cannot fail with a staging to free: nothing captures here */
    return copy.to_block ? SUCCESS : wait_for(stream->id, last_id);
}

static Operation copy_of(uintptr_t to, uintptr_t from, size_t size) {
    return (Operation){.kind = COPY, .to = (void *)to, .from = (void *)from, .size = size};
}
#define COPY_OF(to, from) copy_of((uintptr_t)(to), (uintptr_t)(from), size)
#define COPY_FUNCTION(name, To, to_side, From, from_side)               \
    CUresult name(To to, From from, size_t size) {                      \
        ENTER(CONTEXT);                                                 \
        return copy_now(COPY_OF(to, from), to_side, from_side);            \
    }
#define ASYNC_COPY_FUNCTION(name, To, to_side, From, from_side)         \
    CUresult name(To to, From from, size_t size, CUstream stream) {     \
        ENTER(CONTEXT);                                                 \
        return copy_async(COPY_OF(to, from), to_side, from_side, stream);  \
    }
COPY_FUNCTION(cuMemcpyHtoD_v2, CUdeviceptr, DEVICE_SIDE, const void *, HOST_SIDE)
COPY_FUNCTION(cuMemcpyDtoH_v2, void *, HOST_SIDE, CUdeviceptr, DEVICE_SIDE)
ASYNC_COPY_FUNCTION(cuMemcpyHtoDAsync_v2, CUdeviceptr, DEVICE_SIDE, const void *, HOST_SIDE)
ASYNC_COPY_FUNCTION(cuMemcpyDtoHAsync_v2, void *, HOST_SIDE, CUdeviceptr, DEVICE_SIDE)
ASYNC_COPY_FUNCTION(cuMemcpyDtoDAsync_v2, CUdeviceptr, DEVICE_SIDE, CUdeviceptr, DEVICE_SIDE)
ASYNC_COPY_FUNCTION(cuMemcpyAsync, CUdeviceptr, ANY_SIDE, CUdeviceptr, ANY_SIDE)

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t size, CUstream handle) {
    ENTER_WITH(stream, STREAM, handle);
    Operation fill = COPY_OF(to, to);
    TRY(check_copy(&fill, DEVICE_SIDE, DEVICE_SIDE));
    fill.kind = FILL;
    fill.value = value;
    return submit(stream, &fill);
}

/* ---- Driver: streams and events ---- */

static CUresult create_stream(CUstream *handle, unsigned flags) {
    REQUIRE(flags <= NON_BLOCKING, INVALID_VALUE);
    Object *stream = create(STREAM, current());
    stream->blocking = !(flags & NON_BLOCKING);
    *handle = (CUstream)stream->id;
    return SUCCESS;
}
CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    ENTER(CONTEXT);
    return create_stream(stream, flags);
}
CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority) {
    ENTER(CONTEXT);
    (void)priority;
    return create_stream(stream, flags);
}
CUresult cuStreamDestroy_v2(CUstream handle) { /* at once, as the real one: queued work stays */
    ENTER_WITH(stream, STREAM, handle);
    REQUIRE_NO_OWN_CAPTURE(stream);
    stream->destroyed = true;
    if (!stream->work) destroy(stream);
    return SUCCESS;
}
CUresult cuStreamSynchronize(CUstream handle) {
    ENTER_WITH(stream, STREAM, handle);
    REQUIRE_NO_OWN_CAPTURE(stream);
    REQUIRE_NO_CAPTURE;
    return wait_for(stream->id, last_id);
}
CUresult cuStreamQuery(CUstream handle) {
    ENTER_WITH(stream, STREAM, handle);
    REQUIRE_NO_OWN_CAPTURE(stream);
    return query(stream->id, last_id);
}
CUresult cuStreamWaitEvent(CUstream stream_handle, CUevent event_handle, unsigned flags) {
    ENTER_WITH(stream, STREAM, stream_handle);
    FIND(event, EVENT, event_handle);
    REQUIRE(!flags, INVALID_VALUE);
    if (stream->capture && event->recorded_in == stream->capture_id) return SUCCESS; /* in order */
    REQUIRE(!spoils_own_capture(stream), STREAM_CAPTURE_ISOLATION);
    REQUIRE(!event->recorded_in, NOT_SUPPORTED); /* the stream would join that capture */
    Operation wait = {.kind = WAIT, .stream = event->stream, .until = event->number};
    return submit(stream, &wait);
}
CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void *argument) {
    ENTER_WITH(stream, STREAM, handle);
    REQUIRE(function, INVALID_VALUE);
    return submit(stream, &(Operation){.kind = CALL, .function = function, .argument = argument});
}

CUresult cuEventCreate(CUevent *handle, unsigned flags) {
    ENTER(CONTEXT);
    REQUIRE(flags < 4, INVALID_VALUE);
    Object *event = create(EVENT, current());
    event->timed = !(flags & DISABLE_TIMING);
    *handle = (CUevent)event->id;
    return SUCCESS;
}
CUresult cuEventRecord(CUevent event_handle, CUstream stream_handle) {
    ENTER_WITH(event, EVENT, event_handle);
    FIND(stream, STREAM, stream_handle);
    REQUIRE(event->context == stream->context, INVALID_HANDLE);
    TRY(submit(stream, &(Operation){.kind = MARK}));
    event->recorded_in = stream->capture ? stream->capture_id : 0;
    event->number = stream->capture ? 0 : last_id; /* that of the mark just made */
    event->stream = stream->id;
    return SUCCESS;
}
CUresult cuEventSynchronize(CUevent handle) {
    ENTER_WITH(event, EVENT, handle);
    REQUIRE_NO_CAPTURE;
    REQUIRE(!event->recorded_in, CAPTURED_EVENT);
    return wait_for(event->stream, event->number);
}
CUresult cuEventQuery(CUevent handle) {
    ENTER_WITH(event, EVENT, handle);
    REQUIRE_NO_CAPTURE;
    REQUIRE(!event->recorded_in, CAPTURED_EVENT);
    return query(event->stream, event->number);
}
CUresult cuEventElapsedTime(float *milliseconds, CUevent start_handle, CUevent end_handle) {
    ENTER_WITH(start, EVENT, start_handle);
    FIND(end, EVENT, end_handle);
    REQUIRE(start->timed && end->timed && start->number && end->number, INVALID_HANDLE);
    TRY(query(start->stream, start->number));
    TRY(query(end->stream, end->number));
    *milliseconds = ((float)end->number - (float)start->number) * 1e-3f; /* made up, but in order */
    return SUCCESS;
}

/* ---- Driver: capture and graphs ---- */

CUresult cuStreamBeginCapture_v2(CUstream handle, int mode) {
    ENTER_WITH(stream, STREAM, handle);
    REQUIRE(mode >= MODE_GLOBAL && mode <= MODE_RELAXED, INVALID_VALUE);
    REQUIRE(!stream->capture, ILLEGAL_STATE);
    stream->capture = CAPTURING;
    stream->capture_id = ++last_id;
    stream->mode = mode;
    stream->thread = pthread_self();
    return SUCCESS;
}
CUresult cuStreamIsCapturing(CUstream handle, int *status) {
    ENTER_WITH(stream, STREAM, handle);
    *status = stream->capture;
    return SUCCESS;
}

static void *graph_of(int kind, Id context, const Operation *nodes) {
    Object *graph = create(kind, context);
    for (; nodes; nodes = nodes->next)
        if (nodes->kind != MARK) append(&graph->work, nodes); /* recorded events are no nodes */
    return (void *)graph->id;
}
CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    ENTER_WITH(stream, STREAM, handle);
    *graph = NULL;
    REQUIRE(stream->capture, ILLEGAL_STATE);
    REQUIRE(stream->mode == MODE_RELAXED || pthread_equal(stream->thread, pthread_self()),
            STREAM_CAPTURE_WRONG_THREAD);
    const bool valid = stream->capture == CAPTURING;
    if (valid) *graph = graph_of(GRAPH, stream->context, stream->captured);
    free_operations(stream->captured);
    stream->captured = NULL;
    stream->capture = NOT_CAPTURING;
    return valid ? SUCCESS : STREAM_CAPTURE_INVALIDATED;
}
CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode *nodes, size_t *count) {
    ENTER_WITH(graph, GRAPH, handle);
    const size_t room = nodes ? *count : 0;
    *count = 0;
    for (const Operation *node = graph->work; node; node = node->next, ++*count)
        if (*count < room) nodes[*count] = (CUgraphNode)node->number;
    for (size_t i = *count; i < room; i++) nodes[i] = NULL;
    return SUCCESS;
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph handle, unsigned long long flags) {
    ENTER_WITH(graph, GRAPH, handle);
    REQUIRE(flags < 16, INVALID_VALUE);
    *exec = graph_of(EXEC, graph->context, graph->work);
    return SUCCESS;
}
CUresult cuGraphUpload(CUgraphExec exec_handle, CUstream stream_handle) {
    ENTER_WITH(exec, EXEC, exec_handle);
    FIND(stream, STREAM, stream_handle);
    return exec->context == stream->context ? SUCCESS : INVALID_HANDLE;
}
CUresult cuGraphLaunch(CUgraphExec exec_handle, CUstream stream_handle) {
    ENTER_WITH(exec, EXEC, exec_handle);
    FIND(stream, STREAM, stream_handle);
    REQUIRE(exec->context == stream->context, INVALID_HANDLE);
    REQUIRE(!stream->capture, NOT_SUPPORTED); /* a graph inside a graph */
    for (const Operation *node = exec->work; node; node = node->next) TRY(submit(stream, node));
    return SUCCESS;
}

static CUresult destroy_handle(int kind, void *handle) {
    FIND(object, kind, handle);
    destroy(object);
    return SUCCESS;
}
CUresult cuEventDestroy_v2(CUevent event) { ENTER(CONTEXT); return destroy_handle(EVENT, event); }
CUresult cuGraphDestroy(CUgraph graph) { ENTER(CONTEXT); return destroy_handle(GRAPH, graph); }
CUresult cuGraphExecDestroy(CUgraphExec exec) { ENTER(CONTEXT); return destroy_handle(EXEC, exec); }

/* ---- Looking functions up, counting and failing them ---- */

CUresult cuGetProcAddress_v2(const char *name, void **address, int version, uint64_t flags,
                             int *status);

/* Each name with the suffix of its symbol. */
#define FUNCTIONS(X)                                                                             \
    X(cuGetProcAddress, _v2) X(cuInit, ) X(cuDriverGetVersion, ) X(cuGetErrorName, )             \
    X(cuGetErrorString, )                                                                        \
    X(cuDeviceGet, ) X(cuDeviceGetCount, ) X(cuDeviceGetName, ) X(cuDeviceGetUuid, _v2)          \
    X(cuDeviceTotalMem, _v2) X(cuDeviceGetAttribute, ) X(cuDevicePrimaryCtxRetain, )             \
    X(cuDevicePrimaryCtxRelease, _v2) X(cuCtxSetCurrent, ) X(cuCtxGetCurrent, )                  \
    X(cuCtxPushCurrent, _v2) X(cuCtxPopCurrent, _v2) X(cuCtxGetDevice, ) X(cuCtxSynchronize, )   \
    X(cuMemGetInfo, _v2) X(cuMemAlloc, _v2) X(cuMemFree, _v2) X(cuMemHostAlloc, )                \
    X(cuMemFreeHost, ) X(cuMemHostGetDevicePointer, _v2) X(cuMemcpyHtoD, _v2)                    \
    X(cuMemcpyDtoH, _v2) X(cuMemcpyHtoDAsync, _v2) X(cuMemcpyDtoHAsync, _v2)                     \
    X(cuMemcpyDtoDAsync, _v2) X(cuMemcpyAsync, ) X(cuMemsetD8Async, ) X(cuStreamCreate, )        \
    X(cuStreamCreateWithPriority, ) X(cuStreamDestroy, _v2) X(cuStreamSynchronize, )             \
    X(cuStreamQuery, ) X(cuStreamWaitEvent, ) X(cuStreamBeginCapture, _v2)                       \
    X(cuStreamIsCapturing, ) X(cuStreamEndCapture, ) X(cuEventCreate, ) X(cuEventDestroy, _v2)   \
    X(cuEventRecord, ) X(cuEventSynchronize, ) X(cuEventQuery, ) X(cuEventElapsedTime, )         \
    X(cuLaunchHostFunc, ) X(cuGraphGetNodes, ) X(cuGraphInstantiateWithFlags, )                  \
    X(cuGraphUpload, ) X(cuGraphLaunch, ) X(cuGraphExecDestroy, ) X(cuGraphDestroy, )

typedef struct {
    const char *name, *symbol;
    void *address;
    long calls, fail_after;
    CUresult fail_code;
} Function;

#define AS_ROW(name, suffix) {#name, #name #suffix, (void *)name##suffix, 0, 0, 0},
static Function functions[] = {FUNCTIONS(AS_ROW)};
#define EACH_FUNCTION(f) \
    (Function *f = functions; f < functions + sizeof functions / sizeof *functions; f++)

static Function *function_named(const char *name) {
    for EACH_FUNCTION(f)
        if (!strcmp(f->name, name) || !strcmp(f->symbol, name)) return f;
    return NULL;
}

static CUresult enter(const char *name, enum needs needs) {
    Function *function = function_named(name);
    function->calls++;
    REQUIRE(!in_host_function, NOT_PERMITTED);
    if (function->fail_code && !function->fail_after--) {
        const CUresult code = function->fail_code;
        function->fail_code = SUCCESS;
        return code;
    }
    REQUIRE(needs == NOTHING || initialized, NOT_INITIALIZED);
    if (needs != CONTEXT) return SUCCESS;
    REQUIRE(current(), INVALID_CONTEXT);
    return device_error();
}

/* Whether the name stands for a function with another signature since this CUDA version. */
static bool replaced(const char *name, int version) {
    if (!strcmp(name, "cuLaunchHostFunc")) return version >= 13020;
    const bool context = !strcmp(name, "cuCtxGetDevice") || !strcmp(name, "cuCtxSynchronize");
    return context && version >= 13000;
}

CUresult cuGetProcAddress_v2(const char *name, void **address, int version, uint64_t flags,
                             int *status) {
    (void)flags; /* there are no per-thread default streams */
    const Function *function = function_named(name);
    const bool found = function && !replaced(name, version);
    *address = found ? function->address : NULL;
    if (status) *status = found ? 0 : 1;
    return found ? SUCCESS : NOT_FOUND;
}

/* ---- For the tests ---- */

void fake_set_devices(int count) {
    LOCKED;
    setup.count = count < 0 ? 0 : count > MAX_DEVICES ? MAX_DEVICES : count;
}

static void set_device(const char *name, int major, int minor, int integrated, size_t total) {
    setup.major = major;
    setup.minor = minor;
    setup.integrated = integrated;
    setup.total = total;
    snprintf(setup.name, sizeof setup.name, "%s", name);
}
/* What every device is. */
void fake_set_device(const char *name, int major, int minor, int integrated, size_t total) {
    LOCKED;
    set_device(name, major, minor, integrated, total);
}

void fake_set_multiprocessors(int count) {
    LOCKED;
    setup.multiprocessors = count;
}

/* Lets one call fail, after `after` that pass; code 0 takes it back.
   Returns whether an earlier failure was still to come, -1 for an unknown function. */
int fake_fail(const char *name, CUresult code, long after) {
    LOCKED;
    Function *function = function_named(name);
    REQUIRE(function, -1);
    const bool armed = function->fail_code != SUCCESS;
    function->fail_code = code;
    function->fail_after = after;
    return armed;
}
void fake_clear_failures(void) {
    LOCKED;
    for EACH_FUNCTION(f) f->fail_code = SUCCESS;
}
/* From now on every device has an error that nothing but a reset ends, as after an illegal address. */
void fake_break(CUresult code) {
    LOCKED;
    for (int i = 0; i < MAX_DEVICES; i++) devices[i].error = code;
}
long fake_calls(const char *name) { /* since the last reset; -1: unknown function */
    LOCKED;
    const Function *function = function_named(name);
    return function ? function->calls : -1;
}

/* Bytes from an address to the end of the live block in which a device may use it; 0: none. */
size_t fake_room(uintptr_t address) {
    LOCKED;
    Block *block;
    if (!usable((void *)address, 0, &block) || !on_side(block, DEVICE_SIDE)) return 0;
    return block->size - (address - (uintptr_t)block->base);
}

static long count_handles(void) { /* streams, events, graphs, executable graphs, retains */
    long count = 0;
    for (const Object *object = objects; object; object = object->next) count += !object->destroyed;
    for (int i = 0; i < MAX_DEVICES; i++) count += devices[i].retains;
    return count;
}
static long count_pending(void) { /* copies, fills and host functions that have not run */
    long count = 0;
    for (const Object *object = objects; object; object = object->next)
        for (const Operation *o = object->kind == STREAM ? object->work : NULL; o; o = o->next)
            count += o->kind != WAIT && o->kind != MARK;
    return count;
}
size_t fake_live_device_bytes(void) { LOCKED; return live_bytes(true, 0); }
size_t fake_live_host_bytes(void) { LOCKED; return live_bytes(false, 0); }
size_t fake_peak_device_bytes(void) { LOCKED; return peak_device_bytes; }
long fake_live_handles(void) { LOCKED; return count_handles(); }
long fake_pending(void) { LOCKED; return count_pending(); }

/* Back to the state after loading; what is queued is dropped. Returns how many blocks, handles and
   queued operations were left. No other thread may be using the library. */
__attribute__((constructor)) long fake_reset(void) {
    LOCKED;
    long left = count_handles() + count_pending();
    while (objects) destroy(objects);
    for (; blocks; forget(blocks)) left += !blocks->freed;
    memset(devices, 0, sizeof devices);
    set_device("Fake GPU", 8, 9, 0, (size_t)8 << 30);
    setup.multiprocessors = 16;
    setup.count = 1;
    for EACH_FUNCTION(f) f->calls = f->fail_code = 0;
    peak_device_bytes = 0;
    initialized = false;
    stack_depth = 0; /* of this thread; what others hold is stale and refused */
    return left;
}
