#include "sessions/run.h"

#include <algorithm>

#include "constants.h"
#include "errors.h"
#include "text.h"

namespace rare_trt {
namespace {

std::int64_t padded_size(std::int64_t size) { return (size + kBucket - 1) / kBucket * kBucket; }

// The slab of the image as a tensor [1, c, i, j, k].
Tensor image_input(const Image& image, const Ranges& slab) {
  const auto [i, j, k] = slab;
  const Shape padded = {padded_size(i.size()), padded_size(j.size()), padded_size(k.size())};
  Tensor tensor{{1, image.channels, padded[0], padded[1], padded[2]}, {}};
  tensor.values.resize(
      static_cast<std::size_t>(image.channels * padded[0] * padded[1] * padded[2]));
  const auto [ni, nj, nk] = image.shape;
  for (std::int64_t c = 0; c < image.channels; ++c) {
    for (std::int64_t a = 0; a < i.size(); ++a) {
      for (std::int64_t b = 0; b < j.size(); ++b) {
        const float* from =
            image.values.data() + ((c * ni + i.start + a) * nj + j.start + b) * nk + k.start;
        float* to = tensor.values.data() + ((c * padded[0] + a) * padded[1] + b) * padded[2];
        std::copy_n(from, k.size(), to);
      }
    }
  }
  return tensor;
}

Tensor matrix_input(const Matrix& matrix, std::int64_t rows, std::int64_t columns) {
  Tensor tensor{{rows, columns}, std::vector<float>(static_cast<std::size_t>(rows * columns))};
  for (std::int64_t row = 0; row < matrix.rows; ++row) {
    std::copy_n(matrix.values.data() + row * matrix.columns, matrix.columns,
                tensor.values.data() + row * columns);
  }
  return tensor;
}

// Copies a tile's labels, an array of shape `padded`, to the box `output` of `whole`, which has
// `shape`.
void copy_tile(const std::vector<std::uint8_t>& labels, const Shape& padded, const Ranges& output,
               const Shape& shape, std::vector<std::uint8_t>& whole) {
  const auto [i, j, k] = output;
  for (std::int64_t a = 0; a < i.size(); ++a) {
    for (std::int64_t b = 0; b < j.size(); ++b) {
      const std::uint8_t* from = labels.data() + (a * padded[1] + b) * padded[2];
      std::uint8_t* to =
          whole.data() + ((i.start + a) * shape[1] + j.start + b) * shape[2] + k.start;
      std::copy_n(from, k.size(), to);
    }
  }
}

void check_labels(const Session& session, const std::vector<std::uint8_t>& labels, int classes) {
  const int largest = labels.empty() ? 0 : *std::max_element(labels.begin(), labels.end());
  if (largest < classes) return;
  throw BackendError(text(session.backend, " ", session.arithmetic, " returned label ", largest,
                          "; expected 0 to ", classes - 1,
                          ": run `rare-trt verify`, then build the package again"));
}

}  // namespace

Inputs graph_inputs(const Image& image, const Tile& tile) {
  Inputs inputs;
  inputs[0] = image_input(image, tile.image);
  for (std::size_t axis = 0; axis < 3; ++axis) {
    const Matrix &in = tile.in[axis], &out = tile.out[axis];
    inputs[1 + axis] = matrix_input(in, in.rows, padded_size(in.columns));
    inputs[4 + axis] = matrix_input(out, padded_size(out.rows), out.columns);
  }
  return inputs;
}

std::vector<std::uint8_t> run_tiles(Session& session, const PreparedScan& scan, int classes,
                                    Timings& timings) {
  const Shape shape = scan.plan.output_shape();
  std::vector<std::uint8_t> whole(static_cast<std::size_t>(shape[0] * shape[1] * shape[2]));
  for (const Tile& tile : tiles(scan.plan, scan.max_shape)) {
    Inputs inputs;
    {
      const Stopwatch clock(timings.inputs);
      inputs = graph_inputs(scan.image, tile);
    }
    const Stopwatch clock(timings.graph);
    copy_tile(session.run(inputs), labels_shape(inputs), tile.output, shape, whole);
  }
  check_labels(session, whole, classes);
  return whole;
}

}  // namespace rare_trt
