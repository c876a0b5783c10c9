/* rare_trt: RARE-UNet segmentation of 3D medical scans, from a package on disk to labels.
 *
 * Research use only: not a medical device.
 *
 *   rare_trt_segmenter *segmenter = NULL;
 *   rare_trt_scan scan = {sizeof scan};
 *   ... fill in voxels, dtype, channels, shape and affine ...
 *   if (rare_trt_open("hippocampus.rare", NULL, &segmenter) != RARE_TRT_OK ||
 *       rare_trt_segment(segmenter, &scan, NULL, labels, NULL, NULL) != RARE_TRT_OK)
 *     fprintf(stderr, "%s\n", rare_trt_last_error());
 *   rare_trt_close(segmenter);
 *
 * Structs: each begins with its size, which the caller sets to sizeof. All other fields may be zero
 * unless their comment says otherwise. A program built with this header therefore runs with every
 * later library of the same major version, which takes structs of every size that a header has had.
 * A struct of an unknown size is refused.
 *
 * Threads: every function may be called from any thread at any time, also on one segmenter from
 * several threads at once. Only rare_trt_close must be the last call on its segmenter. OpenVINO
 * computes with the CPUs that the process may use, a container's quota included, or with as many
 * threads as the environment variable RARE_TRT_THREADS says.
 *
 * Processes: once a scan was segmented or a package preloaded, processes that are forked get
 * RARE_TRT_ERROR_BACKEND, because a fork leaves the threads behind that compute.
 *
 * Ownership: arguments remain the caller's. The library keeps no pointer to them after a call,
 * except the warning callback of rare_trt_options and its user_data, which it uses until the
 * segmenter is closed. Returned strings belong to the library.
 *
 * NULL: a pointer that may be NULL is documented so. Any other NULL makes a function that returns a
 * status return RARE_TRT_ERROR_ARGUMENT. Every such function may also return RARE_TRT_ERROR_MEMORY
 * and RARE_TRT_ERROR_INTERNAL. No function throws, exits or prints.
 *
 * Units and axes: lengths are in mm, volumes in mm3, times in ms. World coordinates are right,
 * anterior, superior (NIfTI's convention; x and y of ITK and DICOM have the opposite sign).
 * Canonical axes are the scan's own axes, permuted and flipped to the nearest right, anterior,
 * superior order.
 */
#ifndef RARE_TRT_H
#define RARE_TRT_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define RARE_TRT_API __attribute__((visibility("default")))
#else
#define RARE_TRT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* An open package. */
typedef struct rare_trt_segmenter rare_trt_segmenter;

/* Result code of a call. rare_trt_last_error returns the sentence on a failure. */
typedef enum rare_trt_status {
  RARE_TRT_OK = 0,
  RARE_TRT_ERROR_ARGUMENT = 1, /* an argument is NULL, of an unknown size, or invalid */
  RARE_TRT_ERROR_PACKAGE = 2,  /* the package is absent, damaged, tampered with or too new */
  RARE_TRT_ERROR_SCAN = 3,     /* the scan cannot be segmented as it is */
  RARE_TRT_ERROR_BACKEND = 4,  /* no backend here can run the package, or its labels are wrong */
  RARE_TRT_ERROR_MEMORY = 5,   /* no memory is left */
  RARE_TRT_ERROR_INTERNAL = 6  /* an error of this library: please report it */
} rare_trt_status;

/* Type of a voxel, in the byte order of the machine. */
typedef enum rare_trt_dtype {
  RARE_TRT_UINT8 = 1,
  RARE_TRT_INT8 = 2,
  RARE_TRT_UINT16 = 3,
  RARE_TRT_INT16 = 4,
  RARE_TRT_UINT32 = 5,
  RARE_TRT_INT32 = 6,
  RARE_TRT_UINT64 = 7,
  RARE_TRT_INT64 = 8,
  RARE_TRT_FLOAT32 = 9,
  RARE_TRT_FLOAT64 = 10
} rare_trt_dtype;

/* The library that runs the network. */
typedef enum rare_trt_backend {
  RARE_TRT_BACKEND_AUTO = 0,     /* a TensorRT engine that fits this machine, else OpenVINO */
  RARE_TRT_BACKEND_OPENVINO = 1, /* the CPU */
  RARE_TRT_BACKEND_TENSORRT = 2  /* a TensorRT engine of the package, or an error */
} rare_trt_backend;

/* How to open a package. */
typedef struct rare_trt_options {
  size_t size;
  int32_t backend; /* a rare_trt_backend */
  /* Not 0: load and check all routes in rare_trt_open instead of with the first scan of each. */
  int32_t preload;
  /* Largest number of bytes of GPU memory for engines and their working memory; 0: no limit. */
  uint64_t gpu_memory_limit;
  /* Called with one sentence where the best backend cannot be used and the next one runs, or where
   * the cache cannot be used; NULL: no warnings. Threads that open or segment call it, several at
   * once where several do. It must not call functions of this library. */
  void (*on_warning)(void* user_data, const char* message);
  void* user_data; /* passed to on_warning */
} rare_trt_options;

/* A scan in the caller's memory. */
typedef struct rare_trt_scan {
  size_t size;
  const void* voxels; /* address of voxel (0, 0, 0) of the first channel, aligned or not */
  int32_t dtype;      /* a rare_trt_dtype */
  int32_t channels;   /* as many as rare_trt_channel_count */
  int64_t shape[3];   /* voxels along i, j, k */
  /* Bytes from one voxel to the next along i, j, k, and from one channel to the next. They may be
   * negative, but not 0 where there is more than one. All 0: no gaps, i fastest, then j, k and
   * channels, as in NIfTI files. */
  int64_t strides[4];
  /* Rows of the 4x4 matrix from voxel index (i, j, k, 1) to world coordinates in mm. */
  double affine[16];
} rare_trt_scan;

/* How to segment a scan. */
typedef struct rare_trt_request {
  size_t size;
  /* The route to use instead of the one that fits the spacing; NULL: the one that fits. */
  const int32_t* route;
  /* World points, 3 values in mm each: segments a box of the trained size around each, and labels
   * outside the boxes are 0; NULL: the whole scan. Where boxes overlap, a voxel gets the label of
   * the box whose centre is nearest. */
  const double* at_mm;
  size_t at_count; /* the number of points at at_mm; 0: one */
} rare_trt_request;

/* How a scan was segmented. Arrays of 3 are along canonical axes. */
typedef struct rare_trt_report {
  size_t size;
  /* The choice of the route, from the voxel spacing alone. */
  int32_t route;
  int32_t next_route; /* the nearest other route; -1: there is none */
  int32_t forced;     /* not 0: the caller set the route */
  int32_t resampled;  /* not 0: the scan is resampled to the route's spacing */
  double spacing_mm[3];
  double effective_spacing_mm;  /* root mean square of the spacing, which decides the route */
  double working_spacing_mm[3]; /* of the network's input */
  double factors[3];            /* working spacing over scan spacing */
  double distance;              /* a ratio: effective spacing over the route's */
  double next_distance;         /* the same for next_route; 0: there is none */
  /* The run. */
  char backend[16];        /* "openvino" or "tensorrt" */
  char arithmetic[16];     /* "fp32", "fp16", "int8", "fp16+bf16", ... */
  int32_t touches_edge;    /* not 0: a label touches the edge of the segmented region */
  int32_t tiles;           /* runs of the network */
  double volumes_mm3[256]; /* by label, counted on the network's output grid; [0] is 0 */
  /* Times. load_ms includes the golden-vector check of a route's first scan. */
  double prepare_ms;
  double plan_ms;
  double load_ms;
  double inputs_ms;
  double graph_ms;
  double labels_ms;
  double total_ms;
  int64_t disputed_voxels; /* voxels that two overlapping boxes label differently */
} rare_trt_report;

/* Returns the version of the library, such as "1.2.3". Never NULL; valid as long as the library is
 * loaded. */
RARE_TRT_API const char* rare_trt_version(void);

/* Opens a package: reads and validates its manifest, and nothing else unless `preload` is set.
 *
 * - folder: the package's folder, in UTF-8.
 * - options: NULL: the best backend, nothing preloaded.
 * - segmenter: receives the open package, which the caller must pass to rare_trt_close; NULL on
 * failure.
 *
 * Returns RARE_TRT_OK; RARE_TRT_ERROR_ARGUMENT for a NULL or an invalid option;
 * RARE_TRT_ERROR_PACKAGE where the package is absent, damaged or too new; with `preload` also
 * RARE_TRT_ERROR_BACKEND where no backend can run a route. */
RARE_TRT_API rare_trt_status rare_trt_open(const char* folder, const rare_trt_options* options,
                                           rare_trt_segmenter** segmenter);

/* Closes a package and frees everything that it uses.
 *
 * - segmenter: may be NULL, which does nothing.
 *
 * No other call on the segmenter may be in progress or follow. */
RARE_TRT_API void rare_trt_close(rare_trt_segmenter* segmenter);

/* Returns the number of channels that a scan must have; 0 where `segmenter` is NULL. */
RARE_TRT_API int32_t rare_trt_channel_count(const rare_trt_segmenter* segmenter);

/* Returns the number of labels, the background included: labels are 0 to count - 1. 0 where
 * `segmenter` is NULL. */
RARE_TRT_API int32_t rare_trt_label_count(const rare_trt_segmenter* segmenter);

/* Returns the name of `label` in UTF-8, valid until the segmenter is closed; NULL where there is no
 * such label or `segmenter` is NULL. */
RARE_TRT_API const char* rare_trt_label_name(const rare_trt_segmenter* segmenter, int32_t label);

/* Chooses the route for a voxel spacing, without a scan.
 *
 * - spacing_mm: 3 voxel sizes in mm.
 * - route: a route to use instead of the one that fits; NULL: the one that fits.
 * - report: its size must be set. Receives the choice of the route; its other fields become 0.
 *
 * Returns RARE_TRT_OK; RARE_TRT_ERROR_ARGUMENT for a NULL or a report of an unknown size;
 * RARE_TRT_ERROR_SCAN where the package takes no such spacing or has no such route. On failure
 * `report` is unchanged. */
RARE_TRT_API rare_trt_status rare_trt_choose_route(const rare_trt_segmenter* segmenter,
                                                   const double* spacing_mm, const int32_t* route,
                                                   rare_trt_report* report);

/* Segments a scan and writes one label per voxel, on the scan's own grid.
 *
 * - scan: the scan; its size, voxels, dtype, channels, shape and affine must be set.
 * - request: NULL: the whole scan, by the route that fits its spacing.
 * - labels: address of the label of voxel (0, 0, 0); one byte per voxel.
 * - label_strides: 3 strides in bytes along i, j, k; no two labels may share a byte. NULL: no gaps,
 * i fastest.
 * - report: its size must be set. NULL: no report.
 *
 * Returns RARE_TRT_OK; RARE_TRT_ERROR_ARGUMENT for a NULL or invalid sizes, types or strides;
 * RARE_TRT_ERROR_SCAN where the scan or the request does not fit the package;
 * RARE_TRT_ERROR_PACKAGE where a file of the package is damaged; RARE_TRT_ERROR_BACKEND where no
 * backend can run the route. On failure `labels` and `report` are unchanged.
 *
 * Threads: calls on one segmenter prepare their scans in parallel; the network runs one at a time
 * per route with OpenVINO, which uses all its threads, and one at a time per GPU with TensorRT. */
RARE_TRT_API rare_trt_status rare_trt_segment(rare_trt_segmenter* segmenter,
                                              const rare_trt_scan* scan,
                                              const rare_trt_request* request, uint8_t* labels,
                                              const int64_t* label_strides,
                                              rare_trt_report* report);

/* Returns the flags of the labels that the last rare_trt_segment of this thread wrote: reasons to
 * look at them before trusting them, one sentence per line, as the Python runtime reports them. A
 * strict run there refuses labels with any. Never NULL; "" where there are none and before any call.
 * Valid until the next rare_trt_segment of this thread. */
RARE_TRT_API const char* rare_trt_last_flags(void);

/* Returns one sentence on the last call of this thread that failed: the fault, the value, what was
 * expected and what to do. Never NULL; "" before any failure. Valid until the next call of this
 * thread that fails. */
RARE_TRT_API const char* rare_trt_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
