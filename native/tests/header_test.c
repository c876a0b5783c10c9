/* The header compiles as C89 and needs no other header before it. */
#include <rare_trt.h>

typedef char a_scan_begins_with_its_size[offsetof(rare_trt_scan, size) == 0 ? 1 : -1];

const char* use_all(void);

const char* use_all(void) {
  rare_trt_segmenter* segmenter = NULL;
  rare_trt_options options = {0};
  rare_trt_scan scan = {0};
  rare_trt_request request = {0};
  rare_trt_report report = {0};
  uint8_t label = 0;
  options.size = sizeof options;
  scan.size = sizeof scan;
  request.size = sizeof request;
  report.size = sizeof report;
  if (rare_trt_open("", &options, &segmenter) != RARE_TRT_OK ||
      rare_trt_segment(segmenter, &scan, &request, &label, NULL, &report) != RARE_TRT_OK ||
      rare_trt_choose_route(segmenter, report.spacing_mm, NULL, &report) != RARE_TRT_OK ||
      rare_trt_channel_count(segmenter) != rare_trt_label_count(segmenter)) {
    rare_trt_close(segmenter);
    return rare_trt_last_flags() == NULL ? "" : rare_trt_last_error();
  }
  return rare_trt_label_name(segmenter, 0) == NULL ? rare_trt_version() : "";
}
