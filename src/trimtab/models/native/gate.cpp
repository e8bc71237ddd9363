// The gate of squeeze-and-excitation (Hu et al. 2017, 1709.01507), in channels-last order.

#include "vectors.h"

namespace trimtab {
namespace {

struct Maps {
  long samples, pixels, channels;
  long groups() const { return (channels + BLOCK - 1) / BLOCK; }
};

// Sums the products of features and others over the pixels of each sample.
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
          total[i] += load_some(features + at + i * LANES, some, Floats{}) *
                      load_some(others + at + i * LANES, some, Floats{});
        }
      }
      for (int i = 0; i < 4; ++i)
        store_some(sums + sample * maps.channels + first + i * LANES, count - i * LANES, total[i]);
    }
}

// Sets each output to its feature times the factor of its sample and channel.
template <class Number>
void scale(const Number* features, const float* factors, Number* outputs, const Maps& maps,
           long threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long sample = 0; sample < maps.samples; ++sample)
    for (long pixel = 0; pixel < maps.pixels; ++pixel) {
      const long at = (sample * maps.pixels + pixel) * maps.channels;
      for (long channel = 0; channel < maps.channels; channel += LANES) {
        const long count = maps.channels - channel, of = sample * maps.channels + channel;
        store_some(outputs + at + channel, count,
                   load_some(features + at + channel, count, Floats{}) *
                       load_some(factors + of, count, Floats{}));
      }
    }
}

}  // namespace
}  // namespace trimtab

using namespace trimtab;

extern "C" void sum_products(const void* x, const void* others, float* sums, const Maps* maps,
                             long bfloat, long threads) {
  with_number(bfloat, [&](auto number) {
    using Number = decltype(number);
    sum(static_cast<const Number*>(x), static_cast<const Number*>(others), sums, *maps, threads);
  });
}

extern "C" void scale_pixels(const void* x, const float* factors, void* y, const Maps* maps,
                             long bfloat, long threads) {
  with_number(bfloat, [&](auto number) {
    using Number = decltype(number);
    scale(static_cast<const Number*>(x), factors, static_cast<Number*>(y), *maps, threads);
  });
}
