// scale q (k^T v), head by head, of spikes as bits, and its gradient.
//
// A product with spikes adds the rows that they choose: of the six products forth and back only one
// has two dense factors. Each head of an image is a job of its own, and its sums run over tokens
// and channels in their order: results are the same at all instruction levels and thread counts.
#include <algorithm>
#include <vector>

#include "export.h"
#include "parallel.h"
#include "vector.h"

namespace {

// Channels per head: those of q and k, and those of v.
struct Shape {
  int64_t images, tokens, heads, width, v_width;
  double scale;

  int64_t jobs() const { return images * heads; }
};

// Which channels of a head fire, token by token.
class Spikes {
 public:
  Spikes(int64_t tokens, int64_t width)
      : width(width), ends(tokens + 1), fired(tokens * width + SLACK) {}

  // Reads the spikes of a job from bits [images, tokens, words].
  void read(const uint64_t* bits, const Shape& shape, int64_t job) {
    const int64_t words = (shape.heads * width + 63) / 64, image = job / shape.heads;
    const int64_t first = job % shape.heads * width, last = first + width;
    bits += image * shape.tokens * words;
    uint32_t* end = fired.data();
    for (int64_t n = 0; n < shape.tokens; ++n, bits += words) {
      for (int64_t word = first / 64; word * 64 < last; ++word) {
        const int64_t start = word * 64;
        uint64_t some = bits[word];
        if (start < first) some &= ~uint64_t{0} << (first - start);
        if (start + 64 > last) some &= ~uint64_t{0} >> (start + 64 - last);
        end = append_set_bits(some, static_cast<uint32_t>(start - first), end);
      }
      ends[n + 1] = end - fired.data();
    }
  }

  template <class See>
  void of_token(int64_t n, const See& see) const {
    for (int64_t i = ends[n]; i < ends[n + 1]; ++i) see(fired[i]);
  }

 private:
  int64_t width;
  std::vector<int64_t> ends;
  std::vector<uint32_t> fired;
};

// A matrix of whole vectors: its rows end in zeros, and so does the matrix.
template <class Real>
class Matrix {
 public:
  static constexpr int64_t TOGETHER = 4;  // rows that are multiplied at once
  const int64_t rows, width, vectors;

  Matrix(int64_t rows, int64_t width)
      : rows(rows),
        width(width),
        vectors((width + LANES<Real> - 1) / LANES<Real>),
        memory(make_aligned<Real>((rows + TOGETHER) * vectors * LANES<Real>)) {}

  Real* row(int64_t i) const { return memory.get() + i * vectors * LANES<Real>; }
  Vector<Real>& at(int64_t i, int64_t vector) const {
    return reinterpret_cast<Vector<Real>*>(row(i))[vector];
  }
  void clear() { std::fill(row(0), row(rows + TOGETHER), Real(0)); }

 private:
  Aligned<Real> memory;
};

template <class Real>
void read_spikes(const Spikes& spikes, Matrix<Real>& to) {
  to.clear();
  for (int64_t n = 0; n < to.rows; ++n)
    spikes.of_token(n, [&](uint32_t channel) { to.row(n)[channel] = 1; });
}

// Reads a head of a map [images, tokens, heads * width].
template <class Stored>
void read(const Stored* map, const Shape& shape, int64_t job, Matrix<Wide<Stored>>& to) {
  const int64_t pitch = shape.heads * to.width;
  map += job / shape.heads * shape.tokens * pitch + job % shape.heads * to.width;
  to.clear();
  for (int64_t n = 0; n < to.rows; ++n, map += pitch)
    for (int64_t c = 0; c < to.width; ++c) to.row(n)[c] = widen(map[c]);
}

template <class Stored>
void write(const Matrix<Wide<Stored>>& from, const Shape& shape, int64_t job, Stored* map) {
  constexpr int64_t lanes = LANES<Wide<Stored>>;
  const int64_t pitch = shape.heads * from.width;
  map += job / shape.heads * shape.tokens * pitch + job % shape.heads * from.width;
  for (int64_t n = 0; n < from.rows; ++n, map += pitch)
    for (int64_t v = 0; v < from.vectors; ++v)
      save(map + v * lanes, from.at(n, v), from.width - v * lanes, false);
}

// out = scale spikes^T x
template <class Real>
void scatter(const Spikes& spikes, const Matrix<Real>& x, Real scale, Matrix<Real>& out) {
  out.clear();
  for (int64_t n = 0; n < x.rows; ++n)
    spikes.of_token(n, [&](uint32_t i) {
      for (int64_t v = 0; v < x.vectors; ++v) out.at(i, v) += x.at(n, v);
    });
  for (int64_t i = 0; i < out.rows; ++i)
    for (int64_t v = 0; v < out.vectors; ++v) out.at(i, v) *= scale;
}

// out = spikes x
template <class Real>
void gather(const Spikes& spikes, const Matrix<Real>& x, Matrix<Real>& out) {
  for (int64_t n = 0; n < out.rows; ++n)
    for (int64_t v = 0; v < x.vectors; ++v) {
      Vector<Real> total = {};
      spikes.of_token(n, [&](uint32_t i) { total += x.at(i, v); });
      out.at(n, v) = total;
    }
}

// out = x y
template <class Real>
void multiply(const Matrix<Real>& x, const Matrix<Real>& y, Matrix<Real>& out) {
  constexpr int64_t together = Matrix<Real>::TOGETHER;
  for (int64_t n = 0; n < out.rows; n += together)
    for (int64_t v = 0; v < y.vectors; ++v) {
      Vector<Real> total[together] = {};
      for (int64_t i = 0; i < x.width; ++i)
        for (int64_t row = 0; row < together; ++row) total[row] += x.row(n + row)[i] * y.at(i, v);
      for (int64_t row = 0; row < together; ++row) out.at(n + row, v) = total[row];
    }
}

template <class Real>
void transpose(const Matrix<Real>& x, Matrix<Real>& out) {
  out.clear();
  for (int64_t i = 0; i < x.rows; ++i)
    for (int64_t j = 0; j < x.width; ++j) out.row(j)[i] = x.row(i)[j];
}

template <class Stored>
int forward(const Shape& shape, const uint64_t* q_bits, const uint64_t* k_bits,
            const uint64_t* v_bits, Stored* out) {
  using Real = Wide<Stored>;
  return parallel_for(shape.jobs(), 1, [&](int64_t begin, int64_t end) {
    Spikes q(shape.tokens, shape.width), k(shape.tokens, shape.width);
    Spikes v(shape.tokens, shape.v_width);
    Matrix<Real> values(shape.tokens, shape.v_width), kv(shape.width, shape.v_width);
    for (int64_t job = begin; job < end; ++job) {
      q.read(q_bits, shape, job), k.read(k_bits, shape, job), v.read(v_bits, shape, job);
      read_spikes(v, values);
      scatter(k, values, static_cast<Real>(shape.scale), kv);
      gather(q, kv, values);
      write(values, shape, job, out);
    }
  });
}

// With g the gradient of the output and m = scale q^T g that of k^T v:
// grad_q = scale g v^T k,  grad_k = v m^T,  grad_v = k m.
template <class Stored>
int backward(const Shape& shape, const uint64_t* q_bits, const uint64_t* k_bits,
             const uint64_t* v_bits, const Stored* grad, Stored* grad_q, Stored* grad_k,
             Stored* grad_v) {
  using Real = Wide<Stored>;
  const Real scale = static_cast<Real>(shape.scale);
  const int64_t tokens = shape.tokens, width = shape.width, v_width = shape.v_width;
  return parallel_for(shape.jobs(), 1, [&](int64_t begin, int64_t end) {
    Spikes q(tokens, width), k(tokens, width), v(tokens, v_width);
    Matrix<Real> keys(tokens, width), values(tokens, v_width), g(tokens, v_width);
    Matrix<Real> vk(v_width, width), m(width, v_width), m_turned(v_width, width);
    for (int64_t job = begin; job < end; ++job) {
      q.read(q_bits, shape, job), k.read(k_bits, shape, job), v.read(v_bits, shape, job);
      read(grad, shape, job, g);
      read_spikes(k, keys);
      scatter(v, keys, scale, vk);
      multiply(g, vk, keys);
      write(keys, shape, job, grad_q);

      scatter(q, g, scale, m);
      gather(k, m, values);
      write(values, shape, job, grad_v);
      transpose(m, m_turned);
      gather(v, m_turned, keys);
      write(keys, shape, job, grad_k);
    }
  });
}

}  // namespace

EXPORT int qkv_product(int32_t dtype, int64_t images, int64_t tokens, int64_t heads,
                         int64_t width, int64_t v_width, double scale, const uint64_t* q,
                         const uint64_t* k, const uint64_t* v, void* out) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    return forward({images, tokens, heads, width, v_width, scale}, q, k, v,
                   static_cast<Stored*>(out));
  });
}

EXPORT int qkv_product_backward(int32_t dtype, int64_t images, int64_t tokens, int64_t heads,
                                  int64_t width, int64_t v_width, double scale, const uint64_t* q,
                                  const uint64_t* k, const uint64_t* v, const void* grad,
                                  void* grad_q, void* grad_k, void* grad_v) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    return backward({images, tokens, heads, width, v_width, scale}, q, k, v,
                    static_cast<const Stored*>(grad), static_cast<Stored*>(grad_q),
                    static_cast<Stored*>(grad_k), static_cast<Stored*>(grad_v));
  });
}
