// Layer norm (Ba et al. 2016, 1607.06450) over rows of channels that lie one after another.

#include <vector>

#include "vectors.h"

namespace trimtab {
namespace {

constexpr long PIECE = 16384;  // numbers of a piece at least
constexpr long MOST_PIECES = 64;

struct Rows {
  long rows, channels;
  long per_piece() const {
    const long wanted = std::min(std::max(rows * channels / PIECE, 1L), MOST_PIECES);
    return (rows + wanted - 1) / wanted;
  }
  long pieces() const { return (rows + per_piece() - 1) / per_piece(); }
};

// Calls `use(channel, count)` for the vectors of a row.
template <class Use>
inline void each_vector(long channels, Use use) {
  long channel = 0;
  for (; channel + LANES <= channels; channel += LANES) use(channel, LANES);
  if (channel < channels) use(channel, channels - channel);
}

template <class Number>
void forward(const Number* features, const float* weight, const float* bias, Number* outputs,
             float* means, float* scales, const Rows& shape, float eps, long threads) {
  const long channels = shape.channels;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long row = 0; row < shape.rows; ++row) {
    const Number* from = features + row * channels;
    Number* to = outputs + row * channels;
    Floats total = {};
    each_vector(channels, [&](long at, long count) { total += load_some(from + at, count, Floats{}); });
    const float mean = sum_of(total) / channels;
    Floats spread = {};
    each_vector(channels, [&](long at, long count) {
      const Floats far = load_some(from + at, count, floats(mean)) - mean;
      spread += far * far;
    });
    const float scale = 1 / std::sqrt(sum_of(spread) / channels + eps);
    means[row] = mean, scales[row] = scale;
    each_vector(channels, [&](long at, long count) {
      Floats value = (load_some(from + at, count, Floats{}) - mean) * scale;
      if (weight) value *= load_some(weight + at, count, Floats{});
      if (bias) value += load_some(bias + at, count, Floats{});
      store_some(to + at, count, value);
    });
  }
}

template <class Number>
void backward(const Number* features, const Number* outer, const float* weight, const float* means,
              const float* scales, Number* inner, float* by_weight, float* by_bias,
              const Rows& shape, long threads) {
  const long channels = shape.channels, pieces = shape.pieces();
  std::vector<float> sums(2 * pieces * channels);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long piece = 0; piece < pieces; ++piece) {
    float* products = &sums[2 * piece * channels];
    float* totals = products + channels;
    const long end = std::min(shape.rows, (piece + 1) * shape.per_piece());
    for (long row = piece * shape.per_piece(); row < end; ++row) {
      const Number* from = features + row * channels;
      const Number* asked = outer + row * channels;
      const float mean = means[row], scale = scales[row];
      Floats sum = {}, product = {};
      each_vector(channels, [&](long at, long count) {
        const Floats far = (load_some(from + at, count, floats(mean)) - mean) * scale;
        Floats g = load_some(asked + at, count, Floats{});
        store_some(products + at, count, load_some(products + at, count, Floats{}) + g * far);
        store_some(totals + at, count, load_some(totals + at, count, Floats{}) + g);
        if (weight) g *= load_some(weight + at, count, Floats{});
        sum += g;
        product += g * far;
      });
      const float middle = sum_of(sum) / channels, slope = sum_of(product) / channels;
      each_vector(channels, [&](long at, long count) {
        const Floats far = (load_some(from + at, count, Floats{}) - mean) * scale;
        Floats g = load_some(asked + at, count, Floats{});
        if (weight) g *= load_some(weight + at, count, Floats{});
        store_some(inner + row * channels + at, count, (g - middle - far * slope) * scale);
      });
    }
  }
  for (long channel = 0; channel < channels; ++channel) {
    double product = 0, total = 0;
    for (long piece = 0; piece < pieces; ++piece) {
      product += sums[2 * piece * channels + channel];
      total += sums[(2 * piece + 1) * channels + channel];
    }
    by_weight[channel] = product;
    by_bias[channel] = total;
  }
}

}  // namespace
}  // namespace trimtab

using namespace trimtab;

// `moments` are the means of the rows and, after them, what they are scaled by.
extern "C" void layer_norm_forward(const void* x, const float* weight, const float* bias, void* y,
                                   float* moments, long rows, long channels, float eps, long bfloat,
                                   long threads) {
  with_number(bfloat, [&](auto number) {
    using Number = decltype(number);
    forward(static_cast<const Number*>(x), weight, bias, static_cast<Number*>(y), moments, moments + rows,
            Rows{rows, channels}, eps, threads);
  });
}

extern "C" void layer_norm_backward(const void* x, const void* dy, const float* weight,
                                    const float* moments, void* dx, float* by_both, long rows,
                                    long channels, long bfloat, long threads) {
  with_number(bfloat, [&](auto number) {
    using Number = decltype(number);
    backward(static_cast<const Number*>(x), static_cast<const Number*>(dy), weight, moments,
             moments + rows, static_cast<Number*>(dx), by_both, by_both + channels,
             Rows{rows, channels}, threads);
  });
}
