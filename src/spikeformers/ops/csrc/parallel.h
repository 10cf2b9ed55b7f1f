// Loops over PyTorch's own threads; without them, in one thread.
//
// How a loop is cut depends on the number of threads. Results must not: a body may write only what
// belongs to its own indices, and sums over indices are formed afterwards in a fixed order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "stream.h"

using Range = void (*)(int64_t begin, int64_t end, void* body);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Range, void* body);

extern ParallelFor pool;  // torch_parallel_for, handed over by use_pool; null: one thread

// How many indices are worth a thread if each takes so many additions or so.
inline int64_t grain(int64_t work) {
  constexpr int64_t WORTH_A_THREAD = 1 << 15;
  return WORTH_A_THREAD / std::min(std::max<int64_t>(work, 1), WORTH_A_THREAD);
}

// body(begin, end) over [0, count) in pieces of at least `grain`. Returns 0, or 1 if a body failed
// (memory is all that it can lack).
template <class Body>
int parallel_for(int64_t count, int64_t grain, const Body& body) {
  const Range range = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const Body*>(context))(begin, end);
    finish_stores();
  };
  void* context = const_cast<void*>(static_cast<const void*>(&body));
  if (count <= 0) return 0;
  if (pool && count > grain) return pool(0, count, grain, range, context) != 0;
  try {
    range(0, count, context);
  } catch (...) {
    return 1;
  }
  return 0;
}
