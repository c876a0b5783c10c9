/* Segments a NIfTI scan:  segment PACKAGE SCAN.nii[.gz] LABELS.nii.gz [X Y Z]...
 *
 * X Y Z: a point in world mm; only a box of the trained size around it is segmented, or around each
 * of several. NIfTI is read and written by nifticlib's nifti2_io; FreeSurfer's files are not read.
 * Research use only.
 */
#include <nifti2_io.h>
#include <rare_trt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_POINTS 16

static int fail(const char* sentence) {
  fprintf(stderr, "segment: %s\n", sentence);
  return 0;
}

static int fail_at(const char* path, const char* what) {
  fprintf(stderr, "segment: %s: %s\n", path, what);
  return 0;
}

static int32_t dtype_of(int datatype) {
  switch (datatype) {
    case DT_UINT8:
      return RARE_TRT_UINT8;
    case DT_INT8:
      return RARE_TRT_INT8;
    case DT_UINT16:
      return RARE_TRT_UINT16;
    case DT_INT16:
      return RARE_TRT_INT16;
    case DT_UINT32:
      return RARE_TRT_UINT32;
    case DT_INT32:
      return RARE_TRT_INT32;
    case DT_UINT64:
      return RARE_TRT_UINT64;
    case DT_INT64:
      return RARE_TRT_INT64;
    case DT_FLOAT32:
      return RARE_TRT_FLOAT32;
    case DT_FLOAT64:
      return RARE_TRT_FLOAT64;
    default:
      return 0;
  }
}

static double stored(const nifti_image* nim, int64_t at) {
  switch (nim->datatype) {
    case DT_UINT8:
      return ((const uint8_t*)nim->data)[at];
    case DT_INT8:
      return ((const int8_t*)nim->data)[at];
    case DT_UINT16:
      return ((const uint16_t*)nim->data)[at];
    case DT_INT16:
      return ((const int16_t*)nim->data)[at];
    case DT_UINT32:
      return ((const uint32_t*)nim->data)[at];
    case DT_INT32:
      return ((const int32_t*)nim->data)[at];
    case DT_UINT64:
      return (double)((const uint64_t*)nim->data)[at];
    case DT_INT64:
      return (double)((const int64_t*)nim->data)[at];
    case DT_FLOAT32:
      return ((const float*)nim->data)[at];
    default:
      return ((const double*)nim->data)[at];
  }
}

/* Applies the header's scale and offset to the stored voxels, which become doubles. */
static int scale(nifti_image* nim) {
  const double slope = nim->scl_slope, inter = nim->scl_inter;
  double* values;
  int64_t at;
  if (slope == 0 || (slope == 1 && inter == 0)) return 1;
  values = malloc((size_t)nim->nvox * sizeof *values);
  if (values == NULL) return fail("no memory is left: free some");
  for (at = 0; at < nim->nvox; ++at) values[at] = stored(nim, at) * slope + inter;
  free(nim->data);
  nim->data = values;
  nim->datatype = DT_FLOAT64;
  return 1;
}

/* Sets the affine in mm: the sform, else the qform. */
static int set_affine(const nifti_image* nim, double affine[16]) {
  const nifti_dmat44* matrix = nim->sform_code > 0 ? &nim->sto_xyz : &nim->qto_xyz;
  double mm = 1;
  int row, column;
  if (nim->sform_code <= 0 && nim->qform_code <= 0) {
    return fail("the header has no affine: export the scan again with its orientation");
  }
  if (nim->xyz_units == NIFTI_UNITS_METER) mm = 1000;
  if (nim->xyz_units == NIFTI_UNITS_MICRON) mm = 0.001;
  for (row = 0; row < 4; ++row) {
    for (column = 0; column < 4; ++column) {
      affine[4 * row + column] = matrix->m[row][column] * (row < 3 ? mm : 1);
    }
  }
  return 1;
}

static int set_scan(nifti_image* nim, rare_trt_scan* scan) {
  memset(scan, 0, sizeof *scan);
  if (nim->intent_code == NIFTI_INTENT_LABEL) {
    return fail("the file holds labels, as its header states: name the scan");
  }
  if (dtype_of(nim->datatype) == 0)
    return fail("the voxels are not real numbers: convert the scan");
  if (nim->nu > 1 || nim->nv > 1 || nim->nw > 1) {
    return fail("the scan has more than four axes: extract the volume to segment");
  }
  if (!scale(nim) || !set_affine(nim, scan->affine)) return 0;
  scan->size = sizeof *scan;
  scan->voxels = nim->data;
  scan->dtype = dtype_of(nim->datatype);
  scan->channels = (int32_t)nim->nt;
  scan->shape[0] = nim->nx;
  scan->shape[1] = nim->ny;
  scan->shape[2] = nim->nz;
  return 1;
}

/* An empty label image on the scan's grid. Text fields are not copied: they may contain a patient's
 * name. */
static nifti_image* label_image(const nifti_image* nim, const char* path) {
  const int64_t dims[8] = {3, nim->nx, nim->ny, nim->nz, 1, 1, 1, 1};
  nifti_image* labels = nifti_make_new_nim(dims, DT_UINT8, 1);
  if (labels == NULL || nifti_set_filenames(labels, path, 1, 1) != 0) {
    nifti_image_free(labels);
    return NULL;
  }
  labels->pixdim[1] = labels->dx = nim->dx;
  labels->pixdim[2] = labels->dy = nim->dy;
  labels->pixdim[3] = labels->dz = nim->dz;
  labels->intent_code = NIFTI_INTENT_LABEL;
  strcpy(labels->intent_name, "rare-trt labels");
  labels->xyz_units = nim->xyz_units;
  labels->qform_code = nim->qform_code;
  labels->sform_code = nim->sform_code;
  labels->quatern_b = nim->quatern_b;
  labels->quatern_c = nim->quatern_c;
  labels->quatern_d = nim->quatern_d;
  labels->qoffset_x = nim->qoffset_x;
  labels->qoffset_y = nim->qoffset_y;
  labels->qoffset_z = nim->qoffset_z;
  labels->qfac = nim->qfac;
  labels->qto_xyz = nim->qto_xyz;
  labels->sto_xyz = nim->sto_xyz;
  return labels;
}

/* Writes the labels and reads them back: nifticlib does not report failed writes. */
static int save(nifti_image* labels) {
  nifti_image* written;
  int same;
  nifti_image_write(labels);
  written = nifti_image_read(labels->fname, 1);
  same = written != NULL && written->nvox == labels->nvox &&
         memcmp(written->data, labels->data, (size_t)labels->nvox) == 0;
  nifti_image_free(written);
  if (same) return 1;
  remove(labels->fname);
  return fail_at(labels->fname, "cannot be written: check the folder and the free space");
}

static void print_report(const rare_trt_segmenter* segmenter, const rare_trt_report* report) {
  int32_t label;
  printf("route %d (effective spacing %.3g mm), %s %s, %.0f ms\n", (int)report->route,
         report->effective_spacing_mm, report->backend, report->arithmetic, report->total_ms);
  for (label = 1; label < rare_trt_label_count(segmenter); ++label) {
    printf("  %s: %.0f mm3\n", rare_trt_label_name(segmenter, label), report->volumes_mm3[label]);
  }
  if (report->touches_edge) printf("  check this: a label touches the edge\n");
}

static void warn(void* user_data, const char* message) {
  (void)user_data;
  fprintf(stderr, "segment: %s\n", message);
}

static int segment(const char* package, nifti_image* nim, nifti_image* labels, const double* at_mm,
                   size_t at_count) {
  rare_trt_segmenter* segmenter = NULL;
  rare_trt_options options;
  rare_trt_request request;
  rare_trt_report report;
  rare_trt_scan scan;
  int done;
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.on_warning = warn;
  memset(&request, 0, sizeof request);
  request.size = sizeof request;
  request.at_mm = at_count != 0 ? at_mm : NULL;
  request.at_count = at_count;
  report.size = sizeof report;
  done = set_scan(nim, &scan);
  if (done && rare_trt_open(package, &options, &segmenter) != RARE_TRT_OK) {
    done = fail(rare_trt_last_error());
  }
  if (done &&
      rare_trt_segment(segmenter, &scan, &request, labels->data, NULL, &report) != RARE_TRT_OK) {
    done = fail(rare_trt_last_error());
  }
  if (done) done = save(labels);
  if (done) print_report(segmenter, &report);
  rare_trt_close(segmenter);
  return done;
}

/* Whether the name is that of a FreeSurfer scan. */
static int is_freesurfer(const char* path) {
  const size_t length = strlen(path);
  const char* suffix = length < 4 ? "" : path + length - 4;
  return strcmp(suffix, ".mgz") == 0 || strcmp(suffix, ".mgh") == 0;
}

static int usage(void) {
  fprintf(stderr, "usage: segment PACKAGE SCAN.nii[.gz] LABELS.nii.gz [X Y Z]...\n");
  return 2;
}

int main(int argc, char** argv) {
  nifti_image *nim = NULL, *labels = NULL;
  double at_mm[3 * MOST_POINTS];
  int at, done = 0;
  if (argc < 4 || argc > 4 + 3 * MOST_POINTS || (argc - 4) % 3 != 0) return usage();
  for (at = 0; at < argc - 4; ++at) {
    char* end = NULL;
    at_mm[at] = strtod(argv[4 + at], &end);
    if (end == argv[4 + at] || *end != '\0') return usage();
  }
  if (is_freesurfer(argv[2])) {
    fail_at(argv[2],
            "is a FreeSurfer scan; this program reads NIfTI: convert it (mri_convert), or "
            "use rare-trt infer, which reads it");
    return 1;
  }
  nim = nifti_image_read(argv[2], 1);
  if (nim == NULL) {
    fail_at(argv[2], "cannot be read; expected a NIfTI scan: check the path and the file");
  } else {
    labels = label_image(nim, argv[3]);
    if (labels == NULL) {
      fail_at(argv[3], "exists already, or does not end as NIfTI files do: choose another name");
    } else {
      done = segment(argv[1], nim, labels, at_mm, (size_t)(argc - 4) / 3);
    }
  }
  nifti_image_free(labels);
  nifti_image_free(nim);
  return done ? 0 : 1;
}
