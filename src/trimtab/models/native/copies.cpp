// Copies of many tensors at once, past the caches: the copies are not read soon.

#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "vectors.h"

namespace trimtab {
namespace {

constexpr long LINE = 64;  // bytes

void copy(const char* from, char* to, long size) {
#ifdef __SSE2__
  const long head = std::min(size, static_cast<long>(-reinterpret_cast<uintptr_t>(to) % LINE));
  std::memcpy(to, from, head);
  long done = head;
  for (; done + LINE <= size; done += LINE) {
    _mm_prefetch(from + done + 32 * LINE, _MM_HINT_NTA);
    for (long part = 0; part < LINE; part += 16) {
      const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + done + part));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + done + part), value);
    }
  }
  std::memcpy(to + done, from + done, size - done);
  _mm_sfence();
#else
  std::memcpy(to, from, size);
#endif
}

}  // namespace
}  // namespace trimtab

using namespace trimtab;

// `from`, `to` and `sizes` are addresses and bytes of `count` tensors. Each thread copies an equal
// share of the bytes, wherever the borders of tensors are.
extern "C" void copy_tensors(const char* const* from, char* const* to, const long* sizes, long count,
                             long threads) {
  long total = 0;
  for (long tensor = 0; tensor < count; ++tensor) total += sizes[tensor];
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long thread = 0; thread < threads; ++thread) {
    const long first = total / threads * thread;
    const long last = thread + 1 == threads ? total : total / threads * (thread + 1);
    long start = 0;
    for (long tensor = 0; tensor < count && start < last; start += sizes[tensor++]) {
      const long begin = std::max(first - start, 0L), end = std::min(last - start, sizes[tensor]);
      if (begin < end) copy(from[tensor] + begin, to[tensor] + begin, end - begin);
    }
  }
}
