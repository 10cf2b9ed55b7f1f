// Matrices [T, R, C] in tiles: some rows at a time, which walk through all steps together.
//
// A tile has whole rows, and no vector in it ends within the next tile. Vectors [C] are laid out as
// long as a tile, so that loops run over it without caring where a row ends.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "parallel.h"
#include "rows.h"

constexpr int64_t TILE = 128;       // numbers in a tile, about
constexpr int64_t CHUNK = 1 << 16;  // numbers in a chunk, about: they fit into a core's cache

struct Tiles {
  int64_t T, R, C, rows, count;

  Tiles(int64_t T, int64_t R, int64_t C) : T(T), R(R), C(C) {
    constexpr int64_t VECTOR = 16;  // numbers, at any level; only the last tile may end within one
    const int64_t together = VECTOR / std::gcd(C, VECTOR);
    rows = std::max<int64_t>(1, TILE / (together * C)) * together;
    count = (R + rows - 1) / rows;
  }

  int64_t size() const { return rows * C; }
  int64_t rows_of(int64_t tile) const { return std::min(rows, R - tile * rows); }
  int64_t at(int64_t t, int64_t tile) const { return (t * R + tile * rows) * C; }
  int64_t grain() const { return ::grain(T * size()); }
  int64_t per_chunk() const { return std::max<int64_t>(1, CHUNK / (T * size())); }
  int64_t chunks() const { return (count + per_chunk() - 1) / per_chunk(); }
};

// A vector [C] once per row of a tile; null: `otherwise`.
template <class Real>
Aligned<Real> along_tile(const Tiles& tiles, const Real* vector, Real otherwise) {
  auto repeated = make_aligned<Real>(tiles.size());
  for (int64_t row = 0; row < tiles.rows; ++row)
    if (vector)
      std::copy_n(vector, tiles.C, &repeated[row * tiles.C]);
    else
      std::fill_n(&repeated[row * tiles.C], tiles.C, otherwise);
  return repeated;
}

// Adds the rows of a vector that is as long as a tile.
template <class Real>
void add_rows_of(const Tiles& tiles, const Real* __restrict vector, double* __restrict total) {
  for (int64_t row = 0; row < tiles.rows; ++row)
    for (int64_t c = 0; c < tiles.C; ++c) total[c] += vector[row * tiles.C + c];
}

// Sums over rows: body(begin, end, sums) adds the tiles of one chunk into the vectors `sums`, each
// as long as a tile; out[k] gets the k-th of them summed over all rows. How many chunks there are
// depends on the shape alone, and they are added up in order: the same for any number of threads.
template <int SUMS, class Real, class Body>
int sum_over_rows(const Tiles& tiles, Real* const (&out)[SUMS], const Body& body) {
  const int64_t chunks = tiles.chunks(), size = tiles.size(), C = tiles.C;
  std::vector<double> partial(chunks * SUMS * C);
  double* const totals = partial.data();
  const int failed = parallel_for(chunks, 1, [=, &tiles, &body](int64_t begin, int64_t end) {
    const auto sums = make_aligned<Real>(SUMS * size);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * tiles.per_chunk();
      std::fill_n(sums.get(), SUMS * size, Real{0});
      body(first, std::min(tiles.count, first + tiles.per_chunk()), sums.get());
      for (int k = 0; k < SUMS; ++k)
        add_rows_of(tiles, &sums[k * size], totals + (chunk * SUMS + k) * C);
    }
  });
  for (int k = 0; k < SUMS; ++k) {
    std::vector<double> total(C);
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int64_t c = 0; c < C; ++c) total[c] += totals[(chunk * SUMS + k) * C + c];
    for (int64_t c = 0; c < C; ++c) out[k][c] = static_cast<Real>(total[c]);
  }
  return failed;
}
