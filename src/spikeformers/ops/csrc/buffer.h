// Working memory that begins where a cache line does, so that no vector lies across two of them.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

template <class T>
struct OnLines {
  using value_type = T;
  static constexpr std::align_val_t LINE{64};

  OnLines() = default;
  template <class Other>
  OnLines(const OnLines<Other>&) {}

  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), LINE)); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, LINE); }

  friend bool operator==(const OnLines&, const OnLines&) { return true; }
  friend bool operator!=(const OnLines&, const OnLines&) { return false; }
};

template <class T>
using Buffer = std::vector<T, OnLines<T>>;
