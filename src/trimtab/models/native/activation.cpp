// Activations, of features or of the sum of two.

#include "vectors.h"

namespace trimtab {
namespace {

constexpr long PIECE = 16384;  // numbers that a thread takes at a time

// Calls `use(number, count)` for vectors of so many numbers, shared out between threads.
template <class Use>
void each_vector(long total, long threads, Use use) {
  const long whole = total / LANES * LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long piece = 0; piece < whole; piece += PIECE)
    for (long number = piece; number < std::min(piece + PIECE, whole); number += LANES)
      use(number, LANES);
  if (whole < total) use(whole, total - whole);
}

// `Other` is null where there is no second one.
template <class Activation, class Number, class Other>
void forward(const Number* one, Other other, Number* outputs, long total, long threads) {
  each_vector(total, threads, [=](long at, long count) {
    Floats x = load_some(one + at, count, Floats{});
    if constexpr (!std::is_null_pointer_v<Other>) x += load_some(other + at, count, Floats{});
    store_some(outputs + at, count, Activation::value(x));
  });
}

template <class Activation, class Number, class Other>
void backward(const Number* one, Other other, const Number* outer, Number* inner, long total,
              long threads) {
  each_vector(total, threads, [=](long at, long count) {
    Floats x = load_some(one + at, count, Floats{});
    if constexpr (!std::is_null_pointer_v<Other>) x += load_some(other + at, count, Floats{});
    store_some(inner + at, count, load_some(outer + at, count, Floats{}) * Activation::slope(x));
  });
}

}  // namespace
}  // namespace trimtab

using namespace trimtab;

// `other` may be null, as is every second tensor that is not there.
extern "C" void activate(const void* one, const void* other, void* outputs, long total,
                         long activation, long bfloat, long threads) {
  with_kinds(activation, bfloat, [&](auto kind, auto number) {
    using Activation = decltype(kind);
    using Number = decltype(number);
    const auto* first = static_cast<const Number*>(one);
    const auto* second = static_cast<const Number*>(other);
    auto* out = static_cast<Number*>(outputs);
    if (second) forward<Activation>(first, second, out, total, threads);
    else forward<Activation>(first, nullptr, out, total, threads);
  });
}

extern "C" void activate_backward(const void* one, const void* other, const void* outer, void* inner,
                                  long total, long activation, long bfloat, long threads) {
  with_kinds(activation, bfloat, [&](auto kind, auto number) {
    using Activation = decltype(kind);
    using Number = decltype(number);
    const auto* first = static_cast<const Number*>(one);
    const auto* second = static_cast<const Number*>(other);
    const auto* asked = static_cast<const Number*>(outer);
    auto* in = static_cast<Number*>(inner);
    if (second) backward<Activation>(first, second, asked, in, total, threads);
    else backward<Activation>(first, nullptr, asked, in, total, threads);
  });
}
