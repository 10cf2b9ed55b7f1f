// All native kernels on odd shapes, to be built with sanitizers (`make sanitize`): every tensor ends
// where its memory ends. One thread and several must agree to the last bit. A digest of each kernel's
// results is printed, so that compilers and processors can be compared.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "conv.h"
#include "neuron.h"
#include "norms.h"
#include "number.h"
#include "parallel.h"

extern "C" {
int pack_bits(int32_t, int64_t, int64_t, const void*, int64_t*);
int unpack_bits(int32_t, int64_t, int64_t, const int64_t*, void*);
int count_bits(int64_t, int64_t, int64_t, const uint64_t*, int64_t*);
int lif_forward(int32_t, const NeuronOptions*, int64_t, int64_t, const void*, const void*, void*,
                void*);
int lif_backward(int32_t, const NeuronOptions*, int64_t, int64_t, const void*, const void*,
                 const void*, const void*, void*, void*);
int channel_moments(int32_t, int64_t, int64_t, const void*, void*, void*);
int norm_add(int32_t, int64_t, int64_t, const void*, const void*, const void*, const void*, void*);
int norm_products(int32_t, int64_t, int64_t, const void*, const void*, void*, void*);
int norm_backward(int32_t, int64_t, int64_t, const void*, const void*, const void*, const void*,
                  const void*, void*);
int norm_lif_forward(int32_t, const NeuronOptions*, int64_t, int64_t, int64_t, const void*,
                     const void*, const void*, const void*, int64_t*, void*);
int norm_lif_backward(int32_t, const NeuronOptions*, int64_t, int64_t, int64_t, void*, const void*,
                      const int64_t*, const void*, const void*, const void*, const void*, void*,
                      void*);
int fold_norms_forward(int32_t, int64_t, int64_t, const Norm*, const void*, const Moments*, void*,
                       void*, double*);
int fold_norms_backward(int32_t, int64_t, int64_t, const void*, const void*, const uint8_t*,
                        const Moments*, double*, void*, void*);
int spike_conv(int32_t, const Conv*, const void*, const void*, void*);
int spike_conv_weight_grad(int32_t, const Conv*, const void*, const void*, void*);
int depthwise_conv(int32_t, const Conv*, const void*, const void*, void*);
int spike_depthwise_conv(int32_t, const Conv*, const uint64_t*, const void*, void*);
int depthwise_weight_grad(int32_t, const Conv*, const void*, const void*, void*);
int spike_depthwise_weight_grad(int32_t, const Conv*, const uint64_t*, const void*, void*);
int framed_depthwise(int32_t, const Conv*, const void*, const void*, const void*, const void*,
                     const void*, void*);
int framed_depthwise_backward(int32_t, const Conv*, const void*, const void*, const void*,
                              const void*, const void*, const void*, void*, void*, void*, void*);
int winograd_conv(int32_t, const Conv*, const void*, const void*, void*);
int qkv_product(int32_t, int64_t, int64_t, int64_t, int64_t, int64_t, double, const uint64_t*,
                const uint64_t*, const uint64_t*, void*);
int qkv_product_backward(int32_t, int64_t, int64_t, int64_t, int64_t, int64_t, double,
                         const uint64_t*, const uint64_t*, const uint64_t*, const void*, void*,
                         void*, void*);
}

namespace {

template <class Stored>
constexpr int32_t dtype_of();
template <>
constexpr int32_t dtype_of<float>() { return FLOAT32; }
template <>
constexpr int32_t dtype_of<double>() { return FLOAT64; }
template <>
constexpr int32_t dtype_of<BFloat16>() { return BFLOAT16; }

uint64_t state = 1;

uint64_t random_bits() {
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

template <class Stored>
std::vector<Stored> random_numbers(int64_t count) {
  std::vector<Stored> numbers(count);
  for (auto& number : numbers)
    number = narrow<Stored>(static_cast<Wide<Stored>>(random_bits() % 4096 / 1024.0 - 1.5));
  return numbers;
}

std::vector<int64_t> random_words(int64_t rows, int64_t channels) {
  std::vector<int64_t> bits(rows * ((channels + 63) / 64));
  const auto spikes = random_numbers<float>(rows * channels);
  pack_bits(FLOAT32, rows, channels, spikes.data(), bits.data());
  return bits;
}

int32_t three_threads(int64_t begin, int64_t end, int64_t, Range range, void* body) {
  std::vector<std::thread> threads;
  const int64_t count = end - begin;
  for (int64_t i = 0; i < 3; ++i)
    threads.emplace_back(range, begin + count * i / 3, begin + count * (i + 1) / 3, body);
  for (auto& thread : threads) thread.join();
  return 0;
}

// The outputs of a kernel, which must not depend on threads.
struct Outputs {
  std::vector<std::vector<char>> buffers;

  template <class Stored>
  Stored* of(int64_t count) {
    buffers.emplace_back(count * sizeof(Stored));
    return reinterpret_cast<Stored*>(buffers.back().data());
  }
};

std::map<std::string, uint64_t> digests;

void digest(const char* name, const Outputs& outputs) {
  uint64_t& hash = digests.emplace(name, 0xcbf29ce484222325).first->second;  // FNV-1a
  for (const auto& buffer : outputs.buffers)
    for (const char byte : buffer) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001b3;
}

void check(const char* name, const std::function<int(Outputs&)>& run) {
  Outputs alone, together;
  pool = nullptr;
  int failed = run(alone);
  pool = three_threads;
  failed |= run(together);
  if (failed || alone.buffers != together.buffers) {
    std::fprintf(stderr, "%s: %s\n", name, failed ? "failed" : "depends on the threads");
    std::exit(1);
  }
  digest(name, alone);
}

template <class Stored>
void check_lif(const NeuronOptions& options, int64_t T, int64_t neurons) {
  using Real = Wide<Stored>;
  constexpr int32_t dtype = dtype_of<Stored>();
  const auto x = random_numbers<Stored>(T * neurons), grad = random_numbers<Stored>(T * neurons);
  const auto v0 = random_numbers<Real>(neurons), grad_v = random_numbers<Real>(neurons);
  for (const Real* start : {static_cast<const Real*>(nullptr), v0.data()}) {
    check("lif_forward", [&](Outputs& out) {
      auto *spikes = out.of<Stored>(T * neurons);
      return lif_forward(dtype, &options, T, neurons, x.data(), start, spikes,
                         out.of<Real>(neurons));
    });
    check("lif_backward", [&](Outputs& out) {
      auto* grad_x = out.of<Stored>(T * neurons);
      return lif_backward(dtype, &options, T, neurons, grad.data(), grad_v.data(), x.data(), start,
                          grad_x, out.of<Real>(neurons));
    });
  }
}

template <class Stored>
void check_norm_lif(const NeuronOptions& options, int64_t T, int64_t R, int64_t C) {
  using Real = Wide<Stored>;
  constexpr int32_t dtype = dtype_of<Stored>();
  const int64_t all = T * R * C, words = T * R * ((C + 63) / 64);
  const auto y = random_numbers<Stored>(all), residual = random_numbers<Stored>(all);
  const auto grad = random_numbers<Stored>(all);
  const auto a = random_numbers<Real>(C), b = random_numbers<Real>(C);
  const auto bits = random_words(T * R, C);
  check("unpack_bits", [&](Outputs& out) {
    return unpack_bits(dtype, T * R, C, bits.data(), out.of<Stored>(all));
  });
  check("pack_bits", [&](Outputs& out) {
    return pack_bits(dtype, T * R, C, y.data(), out.of<int64_t>(words));
  });
  check("count_bits", [&](Outputs& out) {
    return count_bits(T * R, 2, (C + 63) / 64, reinterpret_cast<const uint64_t*>(bits.data()),
                      out.of<int64_t>(1));
  });
  check("channel_moments", [&](Outputs& out) {
    auto* mean = out.of<Real>(C);
    return channel_moments(dtype, T * R, C, y.data(), mean, out.of<Real>(C));
  });
  check("norm_products", [&](Outputs& out) {
    auto* grad_gain = out.of<Real>(C);
    return norm_products(dtype, T * R, C, grad.data(), y.data(), grad_gain, out.of<Real>(C));
  });
  check("norm_backward", [&](Outputs& out) {
    return norm_backward(dtype, T * R, C, grad.data(), y.data(), a.data(), b.data(), a.data(),
                         out.of<Stored>(all));
  });
  for (bool norm : {false, true}) {
    const Real *gain = norm ? a.data() : nullptr, *offset = norm ? b.data() : nullptr;
    check("norm_add", [&](Outputs& out) {
      return norm_add(dtype, T * R, C, y.data(), residual.data(), gain, offset,
                      out.of<Stored>(all));
    });
    check("norm_lif_forward", [&](Outputs& out) {
      auto* fired = out.of<int64_t>(words);
      return norm_lif_forward(dtype, &options, T, R, C, y.data(), norm ? nullptr : residual.data(),
                              gain, offset, fired, norm ? nullptr : out.of<Stored>(all));
    });
    check("norm_lif_backward", [&](Outputs& out) {
      auto* grad_x = out.of<Stored>(all);  // begins as the gradient of the spikes
      std::copy(grad.begin(), grad.end(), grad_x);
      auto* grad_gain = norm ? out.of<Real>(C) : nullptr;
      return norm_lif_backward(dtype, &options, T, R, C, grad_x, norm ? nullptr : residual.data(),
                               bits.data(), y.data(), norm ? nullptr : residual.data(), gain,
                               offset, grad_gain, norm ? out.of<Real>(C) : nullptr);
    });
  }
}

// Two norms in a row, one of them in training mode.
template <class Real>
void check_fold_norms(int64_t C) {
  constexpr int32_t dtype = dtype_of<Real>();
  const auto a = random_numbers<Real>(C), b = random_numbers<Real>(C);
  const std::vector<Real> var(C, Real{0.5});
  const Moments moments{b.data(), var.data(), 12};
  std::vector<double> tape(8 * C);
  check("fold_norms_forward", [&](Outputs& out) {
    Real *mean = out.of<Real>(C), *running_var = out.of<Real>(C);
    const Norm norms[] = {{a.data(), b.data(), mean, running_var, 1e-5, 0.1, 1},
                          {b.data(), a.data(), mean, running_var, 1e-5, 0.1, 0}};
    Real *gain = out.of<Real>(C), *offset = out.of<Real>(C);
    return fold_norms_forward(dtype, 2, C, norms, a.data(), &moments, gain, offset, tape.data());
  });
  const uint8_t training[] = {1, 0};
  check("fold_norms_backward", [&](Outputs& out) {
    auto* grads = out.of<Real>(5 * C);
    return fold_norms_backward(dtype, 2, C, a.data(), b.data(), training, &moments, tape.data(),
                               grads, out.of<Real>(2 * C));
  });
}

template <class Stored>
void check_convolutions(int64_t channels, int64_t outputs, int64_t kernel, int64_t stride) {
  using Real = Wide<Stored>;
  constexpr int32_t dtype = dtype_of<Stored>();
  const int64_t images = 3, height = 7, width = 5, padding = kernel / 2;
  const auto out_size = [&](int64_t size) { return (size + 2 * padding - kernel) / stride + 1; };
  const Conv conv{images, height,  width,  channels,         outputs,
                  kernel, stride,  padding, out_size(height), out_size(width), 3};
  const int64_t taps = kernel * kernel, positions = images * out_size(height) * out_size(width);
  const auto bits = random_words(images * height * width, channels);
  const auto weight = random_numbers<Stored>(outputs * channels * taps);
  const auto grad = random_numbers<Stored>(positions * outputs);
  check("spike_conv", [&](Outputs& out) {
    return spike_conv(dtype, &conv, bits.data(), weight.data(),
                      out.of<Stored>(positions * outputs));
  });
  check("spike_conv_weight_grad", [&](Outputs& out) {
    return spike_conv_weight_grad(dtype, &conv, bits.data(), grad.data(),
                                  out.of<Real>(outputs * channels * taps));
  });
  if (channels != outputs) return;
  const auto x = random_numbers<Stored>(images * height * width * channels);
  check("depthwise_weight_grad", [&](Outputs& out) {
    return depthwise_weight_grad(dtype, &conv, x.data(), grad.data(),
                                 out.of<Real>(channels * taps));
  });
  const auto* words = reinterpret_cast<const uint64_t*>(bits.data());
  check("spike_depthwise_weight_grad", [&](Outputs& out) {
    return spike_depthwise_weight_grad(dtype, &conv, words, grad.data(),
                                       out.of<Real>(channels * taps));
  });
  if (stride > 1) return;
  const auto a = random_numbers<Real>(channels), w = random_numbers<Real>(channels * taps);
  check("depthwise_conv", [&](Outputs& out) {
    return depthwise_conv(dtype, &conv, x.data(), w.data(), out.of<Stored>(positions * channels));
  });
  check("spike_depthwise_conv", [&](Outputs& out) {
    return spike_depthwise_conv(dtype, &conv, words, w.data(),
                                out.of<Stored>(positions * channels));
  });
  check("framed_depthwise", [&](Outputs& out) {
    return framed_depthwise(dtype, &conv, x.data(), a.data(), a.data(), a.data(), w.data(),
                            out.of<Stored>(positions * channels));
  });
  check("framed_depthwise_backward", [&](Outputs& out) {
    auto* inside = out.of<Stored>(positions * channels);
    Real *of_gain = out.of<Real>(channels), *of_offset = out.of<Real>(channels);
    return framed_depthwise_backward(dtype, &conv, x.data(), a.data(), a.data(), a.data(),
                                     w.data(), grad.data(), inside, of_gain, of_offset,
                                     out.of<Real>(channels * taps));
  });
}

template <class Stored>
void check_winograd(int64_t channels, int64_t outputs, int64_t padding) {
  const int64_t images = 7, height = 6, width = 5;
  const int64_t out_height = height + 2 * padding - 2, out_width = width + 2 * padding - 2;
  const Conv conv{images, height, width,   channels,   outputs,
                  3,      1,      padding, out_height, out_width, 3};
  const auto x = random_numbers<Stored>(images * height * width * channels);
  const auto weight = random_numbers<Stored>(outputs * channels * 9);
  check("winograd_conv", [&](Outputs& out) {
    return winograd_conv(dtype_of<Stored>(), &conv, x.data(), weight.data(),
                         out.of<Stored>(images * out_height * out_width * outputs));
  });
}

template <class Stored>
void check_qkv_product(int64_t heads, int64_t width, int64_t v_width) {
  constexpr int32_t dtype = dtype_of<Stored>();
  const int64_t images = 2, tokens = 5, rows = images * tokens;
  const int64_t q_size = rows * heads * width, v_size = rows * heads * v_width;
  const auto q = random_words(rows, heads * width), k = random_words(rows, heads * width);
  const auto v = random_words(rows, heads * v_width);
  const auto grad = random_numbers<Stored>(v_size);
  const auto bits = [](const auto& words) { return reinterpret_cast<const uint64_t*>(words.data()); };
  check("qkv_product", [&](Outputs& out) {
    return qkv_product(dtype, images, tokens, heads, width, v_width, 0.5, bits(q), bits(k),
                       bits(v), out.of<Stored>(v_size));
  });
  check("qkv_product_backward", [&](Outputs& out) {
    Stored *of_q = out.of<Stored>(q_size), *of_k = out.of<Stored>(q_size);
    return qkv_product_backward(dtype, images, tokens, heads, width, v_width, 0.5, bits(q),
                                bits(k), bits(v), grad.data(), of_q, of_k, out.of<Stored>(v_size));
  });
}

template <class Stored>
void check_all() {
  const NeuronOptions soft{0.5, 1, 0, 4, 1, 1, 0, 0, 2}, hard{0.5, 1, -0.25, 2, 0, 0, 1, 1, 4};
  for (int64_t T : {1, 3, 7})
    for (int64_t count : {1, 65, 130, 1000}) {
      check_lif<Stored>(soft, T, count);
      check_lif<Stored>(hard, T, count);
    }
  for (int64_t C : {1, 3, 64, 65, 1100}) {
    check_fold_norms<Wide<Stored>>(C);
    for (int64_t R : {1, 41}) {
      check_norm_lif<Stored>(soft, 3, R, C);
      check_norm_lif<Stored>(hard, 1, R, C);
    }
  }
  check_qkv_product<Stored>(1, 1, 1);
  check_qkv_product<Stored>(3, 45, 45);
  check_qkv_product<Stored>(2, 64, 130);
  for (int64_t padding : {0, 1, 3}) {
    check_winograd<Stored>(3, 5, padding);
    check_winograd<Stored>(33, 67, padding);
  }
  for (int64_t kernel : {1, 3})
    for (int64_t stride : {1, 2}) {
      check_convolutions<Stored>(5, 3, kernel, stride);
      check_convolutions<Stored>(70, 67, kernel, stride);
      check_convolutions<Stored>(67, 67, kernel, stride);
    }
}

}  // namespace

int main() {
  check_lif<float>({0.5, 1, 0, 4, 1, 1, 0, 0, 2}, 4, 600001);  // past the caches
  check_all<float>();
  check_all<double>();
  check_all<BFloat16>();
  for (const auto& [name, hash] : digests)
    std::printf("%-26s %016llx\n", name.c_str(), static_cast<unsigned long long>(hash));
}
