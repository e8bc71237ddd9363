// Gradients of depthwise convolutions, in channels-last order.
//
// Some channels of a picture at a time are copied into a plane of fp32 with zeros around its
// pixels: from there every place of the kernel is read without a test for borders.

#include <vector>

#include "vectors.h"

namespace trimtab {
namespace {

constexpr long MOST_PIECES = 32;  // of a batch, each with its own sum

struct Size {
  long height, width;
  long pixels() const { return height * width; }
};

// As depthwise.py lists it.
struct Layer {
  long samples, channels;
  Size inputs, outputs, kernel, stride, padding, dilation;

  long groups() const { return (channels + LANES - 1) / LANES; }
  long taps() const { return kernel.pixels(); }
  Size span() const {
    return {dilation.height * (kernel.height - 1) + 1, dilation.width * (kernel.width - 1) + 1};
  }
  // All that the outputs see, beginning where the first of them begins.
  Size seen() const {
    return {(outputs.height - 1) * stride.height + span().height,
            (outputs.width - 1) * stride.width + span().width};
  }
};

// LANES channels of a map, zero where no pixel is.
struct Plane {
  Size size;
  std::vector<float> numbers;

  explicit Plane(Size size) : size(size), numbers(size.pixels() * LANES) {}

  const float* at(long down, long across) const {
    return &numbers[(down * size.width + across) * LANES];
  }

  // Copies `count` channels of the pixels so that the first one lies at `begin`, or would.
  template <class Number>
  void fill(const Number* picture, Size pixels, long channels, long count, Size begin) {
    const long first = std::max(0L, -begin.height), left = std::max(0L, -begin.width);
    const long last = std::min(pixels.height, size.height - begin.height);
    const long right = std::min(pixels.width, size.width - begin.width);
    for (long i = first; i < last; ++i) {
      float* line = &numbers[((begin.height + i) * size.width + begin.width) * LANES];
      for (long j = left; j < right; ++j)
        store(line + j * LANES, load_some(picture + (i * pixels.width + j) * channels, count, Floats{}));
    }
  }
};

// Adds to the gradients of ROWS x COUNT neighbouring places of the kernel, over all outputs.
template <long ROWS, long COUNT>
void correlate_some(const Plane& seen, const Plane& asked, const Layer& layer, long row, long column,
                    float* sums) {
  const long next = layer.dilation.width * LANES, below = layer.dilation.height * seen.size.width * LANES;
  Floats total[ROWS][COUNT];
  for (long r = 0; r < ROWS; ++r)
    for (long k = 0; k < COUNT; ++k)
      total[r][k] = load(sums + ((row + r) * layer.kernel.width + column + k) * LANES);
  for (long i = 0; i < layer.outputs.height; ++i) {
    const float* from = seen.at(i * layer.stride.height + row * layer.dilation.height,
                                column * layer.dilation.width);
    const float* outer = asked.at(i, 0);
    for (long j = 0; j < layer.outputs.width; ++j) {
      const Floats one = load(outer + j * LANES);
      for (long r = 0; r < ROWS; ++r)
        for (long k = 0; k < COUNT; ++k) total[r][k] += load(from + r * below + k * next) * one;
      from += layer.stride.width * LANES;
    }
  }
  for (long r = 0; r < ROWS; ++r)
    for (long k = 0; k < COUNT; ++k)
      store(sums + ((row + r) * layer.kernel.width + column + k) * LANES, total[r][k]);
}

template <long ROWS>
void correlate_rows(const Plane& seen, const Plane& asked, const Layer& layer, long row, float* sums) {
  for (long column = 0; column < layer.kernel.width;) {
    const long left = layer.kernel.width - column;
    auto some = [&](auto count) {
      correlate_some<ROWS, decltype(count)::value>(seen, asked, layer, row, column, sums);
      column += decltype(count)::value;
    };
    if (left >= 7) some(std::integral_constant<long, 7>{});
    else if (left >= 5) some(std::integral_constant<long, 5>{});
    else if (left >= 3) some(std::integral_constant<long, 3>{});
    else some(std::integral_constant<long, 1>{});
  }
}

template <class Number>
void weight_gradient(const Number* features, const Number* outer, float* by_weight,
                     const Layer& layer, long threads) {
  const long per_piece = (layer.samples + MOST_PIECES - 1) / MOST_PIECES;
  const long pieces = (layer.samples + per_piece - 1) / per_piece, groups = layer.groups();
  std::vector<float> sums(pieces * groups * layer.taps() * LANES);
#pragma omp parallel num_threads(threads)
  {
    Plane seen(layer.seen()), asked(layer.outputs);
#pragma omp for schedule(static) collapse(2)
    for (long piece = 0; piece < pieces; ++piece)
      for (long group = 0; group < groups; ++group) {
        const long first = group * LANES, count = layer.channels - first;
        const long end = std::min(layer.samples, (piece + 1) * per_piece);
        float* here = &sums[(piece * groups + group) * layer.taps() * LANES];
        for (long sample = piece * per_piece; sample < end; ++sample) {
          seen.fill(features + sample * layer.inputs.pixels() * layer.channels + first, layer.inputs,
                    layer.channels, count, layer.padding);
          asked.fill(outer + sample * layer.outputs.pixels() * layer.channels + first, layer.outputs,
                     layer.channels, count, {0, 0});
          long row = 0;
          for (; row + 2 <= layer.kernel.height; row += 2)
            correlate_rows<2>(seen, asked, layer, row, here);
          if (row < layer.kernel.height) correlate_rows<1>(seen, asked, layer, row, here);
        }
      }
  }
  for (long channel = 0; channel < layer.channels; ++channel)
    for (long tap = 0; tap < layer.taps(); ++tap) {
      double total = 0;
      for (long piece = 0; piece < pieces; ++piece)
        total += sums[((piece * groups + channel / LANES) * layer.taps() + tap) * LANES + channel % LANES];
      by_weight[channel * layer.taps() + tap] = total;
    }
}

// The places of the kernel, along one axis, through which an input is seen, and by which output.
struct Views {
  long count = 0;
  std::vector<long> taps, outputs;
  Views(long input, long outputs_there, long kernel, long stride, long padding, long dilation)
      : taps(kernel), outputs(kernel) {
    for (long tap = 0; tap < kernel; ++tap) {
      const long from = input + padding - tap * dilation;
      if (from < 0 || from % stride || from / stride >= outputs_there) continue;
      taps[count] = tap, outputs[count++] = from / stride;
    }
  }
};

// Each input adds up what the outputs that see it ask for.
template <class Number>
void inner_gradient(const Number* outer, const float* weight, Number* inner, const Layer& layer,
                    long threads) {
  std::vector<Views> down, across;
  for (long i = 0; i < layer.inputs.height; ++i)
    down.emplace_back(i, layer.outputs.height, layer.kernel.height, layer.stride.height,
                      layer.padding.height, layer.dilation.height);
  for (long j = 0; j < layer.inputs.width; ++j)
    across.emplace_back(j, layer.outputs.width, layer.kernel.width, layer.stride.width,
                        layer.padding.width, layer.dilation.width);
  std::vector<float> taps(layer.groups() * layer.taps() * LANES);
  for (long channel = 0; channel < layer.channels; ++channel)
    for (long tap = 0; tap < layer.taps(); ++tap)
      taps[(channel / LANES * layer.taps() + tap) * LANES + channel % LANES] =
          weight[channel * layer.taps() + tap];
#pragma omp parallel num_threads(threads)
  {
    Plane asked(layer.outputs);
#pragma omp for schedule(static) collapse(2)
    for (long sample = 0; sample < layer.samples; ++sample)
      for (long group = 0; group < layer.groups(); ++group) {
        const long first = group * LANES, count = layer.channels - first;
        const float* weights = &taps[group * layer.taps() * LANES];
        asked.fill(outer + sample * layer.outputs.pixels() * layer.channels + first, layer.outputs,
                   layer.channels, count, {0, 0});
        Number* to = inner + sample * layer.inputs.pixels() * layer.channels + first;
        for (const Views& rows : down)
          for (const Views& columns : across) {
            Floats sum = {};
            for (long r = 0; r < rows.count; ++r) {
              const float* line = asked.at(rows.outputs[r], 0);
              const float* row = weights + rows.taps[r] * layer.kernel.width * LANES;
              for (long c = 0; c < columns.count; ++c)
                sum += load(line + columns.outputs[c] * LANES) * load(row + columns.taps[c] * LANES);
            }
            store_some(to, count, sum);
            to += layer.channels;
          }
      }
  }
}

}  // namespace
}  // namespace trimtab

using namespace trimtab;

extern "C" void depthwise_weight(const void* x, const void* dy, float* by_weight, const Layer* layer,
                                 long bfloat, long threads) {
  with_number(bfloat, [&](auto number) {
    using Number = decltype(number);
    weight_gradient(static_cast<const Number*>(x), static_cast<const Number*>(dy), by_weight, *layer,
                    threads);
  });
}

extern "C" void depthwise_inner(const void* dy, const float* weight, void* dx, const Layer* layer,
                                long bfloat, long threads) {
  with_number(bfloat, [&](auto number) {
    using Number = decltype(number);
    inner_gradient(static_cast<const Number*>(dy), weight, static_cast<Number*>(dx), *layer, threads);
  });
}
