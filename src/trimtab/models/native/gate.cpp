// Sums over the pixels of each channel, and its multiples: what squeeze-and-excitation is made of
// (Hu et al. 2017, 1709.01507), in channels-last order.

#include "vectors.h"

namespace trimtab {
namespace {

struct Maps {
  long samples, pixels, channels;
  long groups() const { return (channels + BLOCK - 1) / BLOCK; }
};

// Sums features, or their products with `others`, over the pixels of each sample.
template <class Number>
void sum(const Number* features, const Number* others, float* sums, const Maps& maps, long threads) {
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
  for (long sample = 0; sample < maps.samples; ++sample)
    for (long group = 0; group < maps.groups(); ++group) {
      const long first = group * BLOCK, count = std::min(BLOCK, maps.channels - first);
      Floats total[4] = {};
      for (long pixel = 0; pixel < maps.pixels; ++pixel) {
        const long at = (sample * maps.pixels + pixel) * maps.channels + first;
        for (int i = 0; i < 4; ++i) {
          const long some = count - i * LANES;
          Floats value = load_some(features + at + i * LANES, some, Floats{});
          if (others) value *= load_some(others + at + i * LANES, some, Floats{});
          total[i] += value;
        }
      }
      for (int i = 0; i < 4; ++i)
        store_some(sums + sample * maps.channels + first + i * LANES, count - i * LANES, total[i]);
    }
}

// Sets each output to factor * feature + shift, of its sample and channel.
template <class Number>
void scale(const Number* features, const float* factors, const float* shifts, Number* outputs,
           const Maps& maps, long threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long sample = 0; sample < maps.samples; ++sample)
    for (long pixel = 0; pixel < maps.pixels; ++pixel) {
      const long at = (sample * maps.pixels + pixel) * maps.channels;
      for (long channel = 0; channel < maps.channels; channel += LANES) {
        const long count = maps.channels - channel, of = sample * maps.channels + channel;
        Floats value = load_some(features + at + channel, count, Floats{}) *
                       load_some(factors + of, count, Floats{});
        if (shifts) value += load_some(shifts + of, count, Floats{});
        store_some(outputs + at + channel, count, value);
      }
    }
}

}  // namespace
}  // namespace trimtab

using namespace trimtab;

extern "C" void sum_pixels(const void* x, const void* others, float* sums, const Maps* maps,
                           long bfloat, long threads) {
  with_number(bfloat, [&](auto number) {
    using Number = decltype(number);
    sum(static_cast<const Number*>(x), static_cast<const Number*>(others), sums, *maps, threads);
  });
}

extern "C" void scale_pixels(const void* x, const float* factors, const float* shifts, void* y,
                             const Maps* maps, long bfloat, long threads) {
  with_number(bfloat, [&](auto number) {
    using Number = decltype(number);
    scale(static_cast<const Number*>(x), factors, shifts, static_cast<Number*>(y), *maps, threads);
  });
}
