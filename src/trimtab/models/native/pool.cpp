// Max pooling of 2x2 pixels, in channels-last order. A byte tells which of the four was the largest.

#include "vectors.h"

namespace trimtab {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(LANES)));

struct Maps {
  long samples, channels, height, width, down, across;

  // Where the four pixels of a window begin; past the border the last one counts once more.
  struct Window {
    long places[4];
  };
  Window window(long line, long j) const {
    const long sample = line / down, top = 2 * (line % down);
    const long bottom = std::min(top + 1, height - 1);
    const long left = 2 * j, right = std::min(left + 1, width - 1);
    const long above = (sample * height + top) * width, below = (sample * height + bottom) * width;
    return {{(above + left) * channels, (above + right) * channels, (below + left) * channels,
             (below + right) * channels}};
  }

  // Calls `use(channel, count)` for vectors of channels; the last one may begin in the one before.
  template <class Use>
  void each_vector(Use use) const {
    if (channels < LANES) return use(0, channels);
    for (long channel = 0; channel < channels; channel += LANES)
      use(std::min(channel, channels - LANES), LANES);
  }
};

template <class Number>
void forward(const Number* features, Number* outputs, uint8_t* places, const Maps& maps, long threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long line = 0; line < maps.samples * maps.down; ++line)
    for (long j = 0; j < maps.across; ++j) {
      const auto window = maps.window(line, j);
      const long at = (line * maps.across + j) * maps.channels;
      maps.each_vector([=](long channel, long count) {
        Floats best = load_some(features + window.places[0] + channel, count, Floats{});
        Ints where = {};
        for (int k = 1; k < 4; ++k) {
          const Floats value = load_some(features + window.places[k] + channel, count, Floats{});
          const Ints larger = (value > best) | (value != value);
          best = larger ? value : best;
          where = larger ? Ints{} + k : where;
        }
        store_some(outputs + at + channel, count, best);
        const Bytes bytes = __builtin_convertvector(where, Bytes);
        std::memcpy(places + at + channel, &bytes, count);
      });
    }
}

template <class Number>
void backward(const Number* outer, const uint8_t* places, Number* inner, const Maps& maps, long threads) {
  const long pixel = maps.channels * sizeof(Number);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long line = 0; line < maps.samples * maps.down; ++line) {
    for (long j = 0; j < maps.across; ++j) {
      const auto window = maps.window(line, j);
      const long at = (line * maps.across + j) * maps.channels;
      maps.each_vector([=](long channel, long count) {
        Bytes bytes = {};
        std::memcpy(&bytes, places + at + channel, count);
        const Ints where = __builtin_convertvector(bytes, Ints);
        const Floats asked = load_some(outer + at + channel, count, Floats{});
        for (int k = 3; k >= 0; --k)  // so that what counts twice gets what its first one gets
          store_some(inner + window.places[k] + channel, count, where == k ? asked : Floats{});
      });
    }
    // What no window holds.
    const long sample = line / maps.down, top = 2 * (line % maps.down);
    Number* lines = inner + (sample * maps.height + top) * maps.width * maps.channels;
    if (2 * maps.across < maps.width) {
      std::memset(lines + (maps.width - 1) * maps.channels, 0, pixel);
      if (top + 1 < maps.height) std::memset(lines + (2 * maps.width - 1) * maps.channels, 0, pixel);
    }
    if (top + 3 == maps.height && 2 * maps.down < maps.height)
      std::memset(lines + 2 * maps.width * maps.channels, 0, maps.width * pixel);
  }
}

}  // namespace
}  // namespace trimtab

using namespace trimtab;

extern "C" void pool_forward(const void* x, void* y, uint8_t* places, const Maps* maps, long bfloat,
                             long threads) {
  with_number(bfloat, [&](auto number) {
    using Number = decltype(number);
    forward(static_cast<const Number*>(x), static_cast<Number*>(y), places, *maps, threads);
  });
}

extern "C" void pool_backward(const void* dy, const uint8_t* places, void* dx, const Maps* maps,
                              long bfloat, long threads) {
  with_number(bfloat, [&](auto number) {
    using Number = decltype(number);
    backward(static_cast<const Number*>(dy), places, static_cast<Number*>(dx), *maps, threads);
  });
}
