// Large results go to memory past the caches, which would first read what is overwritten.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int64_t LINE = 64;
inline void stream_line(char* to, const char* from) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
}
#elif defined(__AVX__)
constexpr int64_t LINE = 32;
inline void stream_line(char* to, const char* from) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to),
                      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
#elif defined(__SSE2__)
constexpr int64_t LINE = 16;
inline void stream_line(char* to, const char* from) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(to),
                   _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
#else
constexpr int64_t LINE = 16;
inline void stream_line(char* to, const char* from) { std::memcpy(to, from, LINE); }
#endif

// Lets other threads see what was stored, at the latest when they hear that this thread is done.
inline void finish_stores() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Whether so many numbers are too large to be found in a cache by the next operation.
template <class Stored>
constexpr bool is_large(int64_t count) {
  return count * static_cast<int64_t>(sizeof(Stored)) > (int64_t{8} << 20);
}

// Copies `count` numbers from a small buffer.
template <class Stored>
inline void store(Stored* to, const Stored* from, int64_t count, bool large) {
  const int64_t size = count * static_cast<int64_t>(sizeof(Stored));
  char* target = reinterpret_cast<char*>(to);
  const char* source = reinterpret_cast<const char*>(from);
  if (!large) {
    std::memcpy(target, source, size);
    return;
  }
  int64_t i = -reinterpret_cast<intptr_t>(target) & (LINE - 1);  // the first whole line
  if (i > size) i = size;
  std::memcpy(target, source, i);
  for (; i + LINE <= size; i += LINE) stream_line(target + i, source + i);
  std::memcpy(target + i, source + i, size - i);
}

// The same for one vector.
template <class Vector>
inline void store_vector(void* to, const Vector& from, bool large) {
  if (sizeof from == LINE && large && reinterpret_cast<uintptr_t>(to) % LINE == 0) {
    stream_line(static_cast<char*>(to), reinterpret_cast<const char*>(&from));
  } else {
    std::memcpy(to, &from, sizeof from);
  }
}
