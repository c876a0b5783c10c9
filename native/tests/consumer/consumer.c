/* Opens a package, loads and checks all of its routes:  consumer PACKAGE */
#include <rare_trt.h>
#include <stdio.h>

int main(int argc, char** argv) {
  rare_trt_segmenter* segmenter = NULL;
  rare_trt_options options = {sizeof options, RARE_TRT_BACKEND_OPENVINO, 1, 0, NULL, NULL};
  if (argc != 2 || rare_trt_open(argv[1], &options, &segmenter) != RARE_TRT_OK) {
    fprintf(stderr, "%s\n", rare_trt_last_error());
    return 1;
  }
  printf("rare_trt %s: %d labels\n", rare_trt_version(), (int)rare_trt_label_count(segmenter));
  rare_trt_close(segmenter);
  return 0;
}
