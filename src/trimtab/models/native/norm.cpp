// Batch norm (Ioffe and Szegedy 2015, 1502.03167) and the activation behind it, as one.
//
// Features lie as rows of channels. Some rows make a line of whole blocks, some lines a piece.
// Threads share out the pieces, and what is summed over each is added in their order, so that
// results do not hang on the number of threads.

#include <vector>

#include "vectors.h"

namespace trimtab {
namespace {

constexpr long PIECE = 16384;  // numbers of a piece at least
constexpr long MOST_PIECES = 64;
constexpr long TILE = 8192;  // numbers that are gone through block by block: the nearest cache

using Reals = std::vector<float>;
using Totals = std::vector<double>;

struct Shape {
  long channels, total, line, per_piece, pieces;

  Shape(long rows, long channels) : channels(channels), total(rows * channels) {
    long shared = BLOCK;
    while (channels % shared) shared /= 2;
    line = channels * (BLOCK / shared);
    const long lines = (total + line - 1) / line;
    const long wanted = std::min(std::max(total / PIECE, 1L), MOST_PIECES);
    per_piece = (lines + wanted - 1) / wanted;
    pieces = (lines + per_piece - 1) / per_piece;
  }

  long first(long piece) const { return piece * per_piece * line; }
  long size(long piece) const { return std::min(per_piece * line, total - first(piece)); }

  Reals repeated(const Reals& of_channels) const {
    Reals out(line);
    for (long place = 0; place < line; place += channels)
      std::copy(of_channels.begin(), of_channels.end(), out.begin() + place);
    return out;
  }
};

// Calls `use(place, number, count)` for vectors of a piece, line by line: the place in the line,
// which number of the features is the first, and how many of them belong to the piece.
template <class Use>
void each_vector(const Shape& shape, long piece, Use use) {
  const long first = shape.first(piece), size = shape.size(piece);
  long begun = 0;
  for (; begun + shape.line <= size; begun += shape.line)
    for (long place = 0; place < shape.line; place += LANES) use(place, first + begun + place, LANES);
  for (long place = 0; begun + place < size; place += LANES)
    use(place, first + begun + place, size - begun - place);
}

// Two sums for each place of a line and each piece.
struct Sums {
  const Shape& shape;
  Reals one, other;

  explicit Sums(const Shape& shape)
      : shape(shape), one(shape.pieces * shape.line), other(one.size()) {}

  // Calls `add(place, number, count, sum, other sum)` for the vectors of a piece, as above.
  template <class Add>
  void gather(long piece, Add add) {
    const long first = shape.first(piece), size = shape.size(piece), line = shape.line;
    const long step = std::max(TILE / line, 1L) * line;
    for (long tile = 0; tile < size; tile += step)
      for (long block = 0; block < line; block += BLOCK) {
        float* ones = &one[piece * line + block];
        float* others = &other[piece * line + block];
        Floats s[4], t[4];
        for (int i = 0; i < 4; ++i) s[i] = load(ones + i * LANES), t[i] = load(others + i * LANES);
        long begun = tile;
        for (; begun + line <= std::min(tile + step, size); begun += line)
          for (int i = 0; i < 4; ++i) {
            const long place = block + i * LANES;
            add(place, first + begun + place, LANES, s[i], t[i]);
          }
        if (begun < std::min(tile + step, size))
          for (int i = 0; i < 4; ++i) {
            const long place = block + i * LANES;
            add(place, first + begun + place, size - begun - place, s[i], t[i]);
          }
        for (int i = 0; i < 4; ++i) store(ones + i * LANES, s[i]), store(others + i * LANES, t[i]);
      }
  }

  // Calls `use(where, channel, lines)` for each pair of sums, and how many numbers went into it.
  template <class Use>
  void each(Use use) const {
    for (long piece = 0; piece < shape.pieces; ++piece)
      for (long place = 0; place < std::min(shape.line, shape.size(piece)); place += shape.channels) {
        const float lines = (shape.size(piece) - place + shape.line - 1) / shape.line;
        for (long channel = 0; channel < shape.channels; ++channel)
          use(piece * shape.line + place + channel, channel, lines);
      }
  }
};

// Sets mean and variance of each channel, from sums of distances to the first line of each piece.
template <class Number>
void measure(const Number* features, const Shape& shape, float* mean, float* variance, int threads) {
  Sums sums(shape);
  Reals begin(sums.one.size());
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long piece = 0; piece < shape.pieces; ++piece) {
    const Number* start = features + shape.first(piece);
    float* from = &begin[piece * shape.line];
    for (long place = 0; place < shape.line; place += LANES)
      store(from + place, load_some(start + place, shape.size(piece) - place, Floats{}));
    sums.gather(piece, [=](long place, long number, long count, Floats& sum, Floats& squares) {
      const Floats origin = load(from + place);
      const Floats distance = load_some(features + number, count, origin) - origin;
      sum += distance;
      squares += distance * distance;
    });
  }
  const double rows = shape.total / shape.channels;
  Totals total(shape.channels), spread(shape.channels);
  sums.each([&](long where, long channel, float lines) {
    total[channel] += double(begin[where]) * lines + sums.one[where];
  });
  for (double& one : total) one /= rows;
  sums.each([&](long where, long channel, float lines) {
    const double sum = sums.one[where], far = begin[where] + sum / lines - total[channel];
    spread[channel] += sums.other[where] - sum * sum / lines + lines * far * far;
  });
  for (long channel = 0; channel < shape.channels; ++channel) {
    mean[channel] = total[channel];
    variance[channel] = spread[channel] < 0 ? 0 : spread[channel] / rows;
  }
}

// What a norm does to each channel: factor * x + offset.
struct Affine {
  Reals factor, offset, scale;
  Affine(const Shape& shape, const float* weight, const float* bias, const float* mean,
         const float* variance, float eps)
      : factor(shape.channels), offset(shape.channels), scale(shape.channels) {
    for (long channel = 0; channel < shape.channels; ++channel) {
      scale[channel] = 1 / std::sqrt(variance[channel] + eps);
      factor[channel] = scale[channel] * (weight ? weight[channel] : 1);
      offset[channel] = (bias ? bias[channel] : 0) - mean[channel] * factor[channel];
    }
  }
};

template <class Activation, class Number>
void forward(const Number* features, Number* outputs, const Shape& shape, const Affine& affine,
             int threads) {
  const Reals factors = shape.repeated(affine.factor), offsets = shape.repeated(affine.offset);
  const float *factor = factors.data(), *offset = offsets.data();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long piece = 0; piece < shape.pieces; ++piece)
    each_vector(shape, piece, [=](long place, long number, long count) {
      const Floats x = load_some(features + number, count, Floats{});
      const Floats z = x * load(factor + place) + load(offset + place);
      store_some(outputs + number, count, Activation::value(z));
    });
}

// Where the derivative of the activation is dear it is kept in `inner` between the two passes.
template <class Activation, class Number>
void backward(const Number* features, const Number* outer, Number* inner, const Shape& shape,
              const Affine& affine, const float* mean, float* by_weight, float* by_bias,
              int threads) {
  const Reals factors = shape.repeated(affine.factor), offsets = shape.repeated(affine.offset);
  const Reals means = shape.repeated(Reals(mean, mean + shape.channels));
  const float *factor = factors.data(), *offset = offsets.data(), *middle = means.data();
  auto asked = [=](long place, long number, long count, Floats x) {
    const Floats z = x * load(factor + place) + load(offset + place);
    return load_some(outer + number, count, Floats{}) * Activation::slope(z);
  };
  Sums sums(shape);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long piece = 0; piece < shape.pieces; ++piece)
    sums.gather(piece, [=](long place, long number, long count, Floats& sum, Floats& product) {
      const Floats x = load_some(features + number, count, Floats{});
      const Floats g = asked(place, number, count, x);
      if (Activation::dear) store_some(inner + number, count, g);
      sum += g;
      product += g * (x - load(middle + place));
    });
  Totals total(shape.channels), product(shape.channels);
  sums.each([&](long where, long channel, float) {
    total[channel] += sums.one[where];
    product[channel] += sums.other[where];
  });
  const double rows = shape.total / shape.channels;
  Reals slopes(shape.channels), shifts(shape.channels);
  for (long channel = 0; channel < shape.channels; ++channel) {
    const double scale = affine.scale[channel], times = affine.factor[channel];
    by_bias[channel] = total[channel];
    by_weight[channel] = product[channel] * scale;
    const double by = -times * scale * scale * product[channel] / rows;
    slopes[channel] = by;
    shifts[channel] = -times * total[channel] / rows - by * mean[channel];
  }
  const Reals all_slopes = shape.repeated(slopes), all_shifts = shape.repeated(shifts);
  const float *slope = all_slopes.data(), *shift = all_shifts.data();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long piece = 0; piece < shape.pieces; ++piece)
    each_vector(shape, piece, [=](long place, long number, long count) {
      const Floats x = load_some(features + number, count, Floats{});
      const Floats g = Activation::dear ? load_some(inner + number, count, Floats{})
                                        : asked(place, number, count, x);
      store_some(inner + number, count,
                 g * load(factor + place) + x * load(slope + place) + load(shift + place));
    });
}

}  // namespace
}  // namespace trimtab

using namespace trimtab;

// `moments` are means and variances, one after the other.
extern "C" void norm_forward(const void* x, void* y, const float* weight, const float* bias,
                             float* moments, long rows, long channels, float eps,
                             long activation, long bfloat, long threads) {
  const Shape shape(rows, channels);
  float *mean = moments, *variance = moments + channels;
  with_kinds(activation, bfloat, [&](auto kind, auto number) {
    using Number = decltype(number);
    const auto* features = static_cast<const Number*>(x);
    measure(features, shape, mean, variance, threads);
    const Affine affine(shape, weight, bias, mean, variance, eps);
    forward<decltype(kind)>(features, static_cast<Number*>(y), shape, affine, threads);
  });
}

extern "C" void norm_backward(const void* x, const void* dy, void* dx, const float* weight,
                              const float* bias, const float* moments, float* by_both, long rows,
                              long channels, float eps, long activation, long bfloat, long threads) {
  const Shape shape(rows, channels);
  const float *mean = moments, *variance = moments + channels;
  float *by_weight = by_both, *by_bias = by_both + channels;
  const Affine affine(shape, weight, bias, mean, variance, eps);
  with_kinds(activation, bfloat, [&](auto kind, auto number) {
    using Number = decltype(number);
    backward<decltype(kind)>(static_cast<const Number*>(x), static_cast<const Number*>(dy),
                             static_cast<Number*>(dx), shape, affine, mean, by_weight, by_bias,
                             threads);
  });
}
