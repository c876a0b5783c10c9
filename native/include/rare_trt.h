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
 * Structs begin with their size, which the caller sets to sizeof; all other fields may be zero
 * unless it says otherwise. So a program built with this header runs with any later library of the
 * same major version. A struct of another size than a known one is refused.
 *
 * Threads: every function may be called from any thread at any time, also on one segmenter from
 * several threads; rare_trt_close alone must be the last call on its segmenter.
 *
 * Ownership: what a caller passes stays the caller's, and no pointer to it is kept once the
 * function returns, but for the warning callback of rare_trt_options and its user_data, which the
 * segmenter uses until it is closed. Strings that are returned are the library's.
 *
 * NULL: a pointer that may be NULL says so; any other one makes a function that returns a status
 * return RARE_TRT_ERROR_ARGUMENT. No function throws, exits or prints.
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

/* What a call came to. rare_trt_last_error has the sentence that goes with it. */
typedef enum rare_trt_status {
  RARE_TRT_OK = 0,
  RARE_TRT_ERROR_ARGUMENT = 1, /* an argument is NULL, of an unknown size, or makes no sense */
  RARE_TRT_ERROR_PACKAGE = 2,  /* the package is absent, damaged, tampered with or too new */
  RARE_TRT_ERROR_SCAN = 3,     /* the scan cannot be segmented as it is */
  RARE_TRT_ERROR_BACKEND = 4,  /* nothing here can run the package, or can be trusted to */
  RARE_TRT_ERROR_MEMORY = 5,   /* there is no memory left */
  RARE_TRT_ERROR_INTERNAL = 6  /* a fault of this library: please report it */
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

/* What runs the network. */
typedef enum rare_trt_backend {
  RARE_TRT_BACKEND_AUTO = 0, /* an engine of the package that fits this machine, else OpenVINO */
  RARE_TRT_BACKEND_OPENVINO = 1, /* the CPU */
  RARE_TRT_BACKEND_TENSORRT = 2  /* an engine of the package, or an error */
} rare_trt_backend;

typedef struct rare_trt_options {
  size_t size;
  int32_t backend; /* a rare_trt_backend */
  /* Not 0: load and prove all routes in rare_trt_open, not when the first scan needs them. */
  int32_t preload;
  /* Bytes that engines and their working memory may take on the GPU; 0: no limit. */
  uint64_t gpu_memory_limit;
  /* Called with one sentence where the best backend is passed over and the next one answers; NULL:
   * nobody is told. It is called from the threads that open and segment, so by several at once
   * where several do, and must not call functions of this library. */
  void (*on_warning)(void* user_data, const char* message);
  void* user_data;
} rare_trt_options;

typedef struct rare_trt_scan {
  size_t size;
  /* The voxel (0, 0, 0) of the first channel. */
  const void* voxels;
  int32_t dtype; /* a rare_trt_dtype */
  int32_t channels;
  /* Voxels along i, j, k. */
  int64_t shape[3];
  /* Bytes from one voxel to the next along i, j, k, and from one channel to the next; they may be
   * negative, but not 0 where there is more than one. All 0: no gaps, i fastest, then j, k and
   * channels, as NIfTI files have it. */
  int64_t strides[4];
  /* Rows of the 4x4 matrix from voxel (i, j, k, 1) to the world in mm: right, anterior, superior
   * (NIfTI's convention; ITK's and DICOM's x and y point the other way). */
  double affine[16];
} rare_trt_scan;

/* How to segment a scan. */
typedef struct rare_trt_request {
  size_t size;
  /* A route to take instead of the one that fits the spacing, or NULL. */
  const int32_t* route;
  /* World point, 3 values in mm: segments a box of the trained size around it, or NULL: all of the
   * scan. Labels outside the box are 0. */
  const double* at_mm;
} rare_trt_request;

/* What became of a scan. Axes are canonical: right, anterior, superior. */
typedef struct rare_trt_report {
  size_t size;
  /* The decision, by voxel spacing alone. */
  int32_t route;
  int32_t next_route; /* the nearest other route; -1: there is none */
  int32_t forced;     /* not 0: the route was asked for */
  int32_t resampled;  /* not 0: the scan is brought to the route's spacing */
  double spacing_mm[3];
  double effective_spacing_mm;  /* the one number that the route was chosen by */
  double working_spacing_mm[3]; /* what the network sees */
  double factors[3];            /* working over scan spacing */
  double distance;              /* effective spacing over the route's */
  double next_distance;         /* the same for next_route; 0: there is none */
  /* The run. */
  char backend[16];        /* "openvino" or "tensorrt" */
  char arithmetic[16];     /* what it computed in: "fp32", "fp16", "int8", "fp16+bf16", ... */
  int32_t touches_edge;    /* not 0: a label reaches the edge of what was segmented */
  int32_t tiles;           /* runs of the network */
  double volumes_mm3[256]; /* by label, counted where the answer is finest; [0] is 0 */
  /* Milliseconds. Load includes the proof of a route's first scan. */
  double prepare_ms;
  double plan_ms;
  double load_ms;
  double inputs_ms;
  double graph_ms;
  double labels_ms;
  double total_ms;
} rare_trt_report;

/* The version of the library, as "1.2.3". Never NULL; lives as long as the library. */
RARE_TRT_API const char* rare_trt_version(void);

/* Opens the package in `folder` (UTF-8). `options` may be NULL: the best backend, nothing loaded.
 * On success *segmenter is the caller's, to be given to rare_trt_close; otherwise it is NULL. The
 * manifest is read and checked here, and nothing else unless `preload` is set. */
RARE_TRT_API rare_trt_status rare_trt_open(const char* folder, const rare_trt_options* options,
                                           rare_trt_segmenter** segmenter);

/* Frees the segmenter and all it holds. `segmenter` may be NULL: nothing is done. No other call on
 * it may be under way or follow. */
RARE_TRT_API void rare_trt_close(rare_trt_segmenter* segmenter);

/* Channels that a scan must have. `segmenter` may be NULL: 0. */
RARE_TRT_API int32_t rare_trt_channel_count(const rare_trt_segmenter* segmenter);

/* Labels, the background included: label values are 0 to count - 1. `segmenter` may be NULL: 0. */
RARE_TRT_API int32_t rare_trt_label_count(const rare_trt_segmenter* segmenter);

/* The name of `label` (UTF-8); lives as long as the segmenter. NULL where there is no such label.
 * `segmenter` may be NULL: it has none. */
RARE_TRT_API const char* rare_trt_label_name(const rare_trt_segmenter* segmenter, int32_t label);

/* The route that a scan with these voxel sizes (3 values in mm) would take: fills the decision in
 * `report`, whose size is set, and zeroes the rest. `route` may be NULL: no route is forced. On
 * failure `report` is left as it was. */
RARE_TRT_API rare_trt_status rare_trt_choose_route(const rare_trt_segmenter* segmenter,
                                                   const double* spacing_mm, const int32_t* route,
                                                   rare_trt_report* report);

/* Segments a scan: writes one label per voxel of it, on its own grid, into `labels`.
 * `label_strides` are 3 steps in bytes along i, j, k; NULL: no gaps, i fastest. `request` may be
 * NULL: all of the scan by the route that fits. `report`, whose size is set, may be NULL. On
 * failure `labels` and `report` are left as they were. Calls on one segmenter prepare their scans
 * at the same time; the network runs for one of them at a time per route, or per GPU. */
RARE_TRT_API rare_trt_status rare_trt_segment(rare_trt_segmenter* segmenter,
                                              const rare_trt_scan* scan,
                                              const rare_trt_request* request, uint8_t* labels,
                                              const int64_t* label_strides,
                                              rare_trt_report* report);

/* One sentence on the last call of this thread that failed: what is wrong, the value, what was
 * expected, what to do. Never NULL, "" before any failure; valid until the next call of this thread
 * that fails. */
RARE_TRT_API const char* rare_trt_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
