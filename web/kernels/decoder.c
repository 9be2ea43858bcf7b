/* The decoder of Gemma 3 in WebAssembly: token ids in, logits out, over weights of 4 and 8 bits as they are stored.
 *
 * A pass takes the next tokens (one while an answer is written, up to 64 while a prompt is read) through all layers:
 *
 *   x = embedding rows                                       every arrow that ends in [int8] quantises its row,
 *   18 times:  norm -> [int8] -> Q K V                       because all products are of integers
 *              norm heads, rotate, store K and V, attend
 *              -> [int8] -> product -> norm -> x += it
 *              norm -> [int8] -> gate, up -> gelu(gate) * up -> [int8] -> down -> norm -> x += it
 *   norm -> [int8] -> logits (the embedding table again)
 *
 * THE PRODUCT. A weight is (q - z) * s: a code q, and a zero point z and a scale s that a block of 32 to 256 weights of
 * one row share. An activation is a * t: a in -127..127, and a scale t for the same block. So for one block
 *
 *   sum of weights * activations  =  s * t * ( sum(q * a)  -  z * sum(a) ),
 *
 * where all that stands in brackets are integers below 2^24: exact in any order and in float32. Only the sum over
 * blocks rounds, and it goes from the first block to the last. Hence every build, every number of threads and every
 * number of tokens in a pass gives the same logits, bit for bit.
 *
 *   codes of 8 bits, block 64               q q q q q q q q q q q q q q q q | 16 more | 16 more | 16 more
 *   codes of 4 bits, 32 in 16 bytes         byte i holds code 2i in its low half and code 2i + 1 in its high half
 *
 * THE INSTRUCTION. i32x4.relaxed_dot_i8x16_i7x16_add multiplies 16 pairs of bytes and adds each four of them. It is the
 * same on all processors only if the second operand is in 0..127. 4-bit codes are. For 8-bit codes the activation
 * takes that place: |a| is in 0..127, and its sign goes to the code. With c = q - 128 (the byte q with its top bit
 * turned) a byte's complement is -c - 1, so
 *
 *   for a >= 0:  |a| * c         =  a * c             one XOR by 0x80 or 0x7f makes either operand,
 *   for a <  0:  |a| * (-c - 1)  =  a * c - |a|       and the |a| of negative a are added once a block.
 *
 * Without relaxed SIMD the codes are widened to 16 bits (i32x4.dot_i16x8), with the same sums.
 *
 * PANELS. Four rows of a matrix are multiplied together: their four sums of a block become one vector, which scales and
 * zero points, stored as four neighbours, meet lane by lane.
 *
 *   row 4n      [ block 0 ][ block 1 ] ...     -> 4 lane sums --.
 *   row 4n + 1  [ block 0 ][ block 1 ] ...     -> 4 lane sums ---+-> one vector of 4 sums for block 0
 *   row 4n + 2  [ block 0 ][ block 1 ] ...     -> 4 lane sums ---+   (- z * sum(a)) * (s * t), and on to block 1
 *   row 4n + 3  [ block 0 ][ block 1 ] ...     -> 4 lane sums --'
 *
 * With one row of activations (an answer is written) the time goes into reading weights, with more (a prompt is read, a
 * draft is checked) into arithmetic: `panel_once` and `panel_twice` differ in their order, not in their results.
 *
 * THREADS. All run `pass`; between two barriers they take tasks from one counter, so that a slow core does less.
 * Waiters spin for a few microseconds, then sleep; a thread that is awaited in vain ends the pass by a trap. There is no
 * static data: everything lies where decoder.js put it, in structs of 32-bit words whose order decoder.js knows.
 * Sources: Gemma 3, https://arxiv.org/abs/2503.19786; MatMulNBits, onnxruntime's ContribOperators.md; relaxed SIMD,
 * https://github.com/WebAssembly/relaxed-simd.
 */
#include <wasm_simd128.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef float f32;
typedef v128_t vec;

#define INLINE static inline __attribute__((always_inline))
#define EXPORT(name) __attribute__((export_name(#name)))
#define load(p) wasm_v128_load(p)
#define store(p, v) wasm_v128_store(p, v)
#define splat(x) wasm_f32x4_splat(x)
#define add(a, b) wasm_f32x4_add(a, b)
#define sub(a, b) wasm_f32x4_sub(a, b)
#define mul(a, b) wasm_f32x4_mul(a, b)
#define min(a, b) ((a) < (b) ? (a) : (b))
#define max(a, b) ((a) > (b) ? (a) : (b))

#ifdef __wasm_relaxed_simd__
enum { RELAXED = 1 };
#else
enum { RELAXED = 0 };
#endif
enum { TILE = 8, KEYS = 32, MAX_BLOCKS = 512, RUN = 32, GROUP = 16, CACHED = 20480, SPIN = 4000 };

/* codes as stored; scales [panel][block][4], zeros [panel][block][4] */
typedef struct { const u8 *codes; f32 *scales; u8 *zeros; i32 rows, width, bits, block; } Matrix;
/* quantised rows: codes 2 * width bytes a row, sums [row][block][4]: scale, sum of codes, correction, nothing */
typedef struct { u8 *codes; f32 *sums; } Quantized;
typedef struct {
  Matrix qkv[3], out, gate_up[2], down;  /* rows 0: not there */
  const f32 *input_norm, *query_norm, *key_norm, *post_attention_norm, *pre_feedforward_norm, *post_feedforward_norm;
  const f32 *rope;  /* [position][dim]: cosines, then sines */
  f32 *keys, *values;  /* [kv head][capacity][dim] */
  i32 window;  /* positions a query sees, itself included; 0: all */
} Layer;
typedef struct {
  i32 layers, vocab, hidden, inner, heads, kv_heads, dim, capacity;
  f32 eps, attention_scale, embedding_scale;
  const f32 *final_norm;
  Matrix table, precise;  /* the embedding; its rows of more bits, with the place of each token there or -1 */
  const i32 *places;
  Layer *layer;
  f32 *x, *normed, *qkv, *mixed, *branch, *gate_up, *scores, *logits;  /* scratch of one pass */
  Quantized quantized[2];  /* for codes of 4 bits; of 8 bits */
  /* the job: `count` tokens at positions `first`...; logits of the last `keep` of them, of these rows */
  const i32 *ids;
  i32 first, count, keep;
  const i32 *picked, *precise_picked, *precise_columns;  /* picked 0: all rows */
  i32 picks, precise_picks;
  i32 threads, quit, generation, arrived, phase, sleepers, task, patience;  /* patience: seconds, of a barrier */
} Model;

/* ---- Threads ---- */
#ifdef __wasm_atomics__
INLINE i32 peek(i32 *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
INLINE i32 take(Model *m) { return __atomic_fetch_add(&m->task, 1, __ATOMIC_SEQ_CST); }

/* Return once *word is no longer `old`; trap after `seconds` (-1: never) of waiting, and when a thread has failed. Each
 * second is a wait of its own: one that a sleeping machine cuts short counts no more than another. */
static void await_change(Model *m, i32 *word, i32 old, i32 seconds) {
  for (i32 i = 0; i < SPIN; i++) if (peek(word) != old) return;
  __atomic_fetch_add(&m->sleepers, 1, __ATOMIC_SEQ_CST);
  while (peek(word) == old) {
    if (!seconds || (seconds > 0 && peek(&m->quit) && peek(word) == old)) __builtin_trap();
    if (__builtin_wasm_memory_atomic_wait32(word, old, seconds < 0 ? -1 : 1000000000LL) == 2) seconds--;
  }
  __atomic_fetch_sub(&m->sleepers, 1, __ATOMIC_SEQ_CST);
}

/* Set *word; a waiter that does not see the new value before it sleeps has counted itself, and is woken. */
static void announce(Model *m, i32 *word, i32 value) {
  __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
  if (peek(&m->sleepers)) __builtin_wasm_memory_atomic_notify(word, m->threads);
}

/* All threads meet; the last one in resets the tasks and opens the next phase. */
static void barrier(Model *m) {
  i32 phase = peek(&m->phase);
  if (__atomic_add_fetch(&m->arrived, 1, __ATOMIC_SEQ_CST) < m->threads) {
    await_change(m, &m->phase, phase, m->patience);
    return;
  }
  m->arrived = 0;
  m->task = 0;
  announce(m, &m->phase, phase + 1);
}
#else
INLINE i32 take(Model *m) { return m->task++; }
static void barrier(Model *m) { m->task = 0; }
#endif

/* ---- Small vector functions ---- */
INLINE f32 lanes_sum(vec v) {
  return (wasm_f32x4_extract_lane(v, 0) + wasm_f32x4_extract_lane(v, 1)) +
         (wasm_f32x4_extract_lane(v, 2) + wasm_f32x4_extract_lane(v, 3));
}

/* Lane j of the result is the sum of the lanes of vector j: ((0 + 2) + (1 + 3)). */
#define TRANSPOSED_SUM(name, plus) \
  INLINE vec name(vec a, vec b, vec c, vec d) { \
    vec ab = plus(wasm_i32x4_shuffle(a, b, 0, 4, 1, 5), wasm_i32x4_shuffle(a, b, 2, 6, 3, 7)); \
    vec cd = plus(wasm_i32x4_shuffle(c, d, 0, 4, 1, 5), wasm_i32x4_shuffle(c, d, 2, 6, 3, 7)); \
    return plus(wasm_i32x4_shuffle(ab, cd, 0, 1, 4, 5), wasm_i32x4_shuffle(ab, cd, 2, 3, 6, 7)); \
  }
TRANSPOSED_SUM(int_sums, wasm_i32x4_add)
TRANSPOSED_SUM(float_sums, wasm_f32x4_add)

/* e^x for x <= 88, about one unit in the last place: 2^n * e^r with |r| <= ln(2) / 2 (Cephes' polynomial). */
INLINE vec exponential(vec x) {
  x = wasm_f32x4_pmax(splat(-87.0f), wasm_f32x4_pmin(splat(88.0f), x));
  vec n = wasm_f32x4_nearest(mul(x, splat(1.44269504f)));
  vec r = sub(sub(x, mul(n, splat(0.693359375f))), mul(n, splat(-2.12194440e-4f)));
  vec p = splat(1.9875691500e-4f);
  p = add(mul(p, r), splat(1.3981999507e-3f));
  p = add(mul(p, r), splat(8.3334519073e-3f));
  p = add(mul(p, r), splat(4.1665795894e-2f));
  p = add(mul(p, r), splat(1.6666665459e-1f));
  p = add(mul(p, r), splat(5.0000001201e-1f));
  p = add(add(mul(mul(p, r), r), r), splat(1.0f));
  vec power = wasm_i32x4_shl(wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(n), wasm_i32x4_splat(127)), 23);
  return mul(p, power);
}

/* ---- Rows ---- */

/* out = x / sqrt(mean(x^2) + eps) * weight, where Gemma's 1 + w is `weight` already; n is a multiple of 4. */
EXPORT(norm) void norm(const f32 *x, const f32 *weight, f32 *out, i32 n, f32 eps) {
  vec squares = splat(0);
  for (i32 i = 0; i < n; i += 4) squares = add(squares, mul(load(x + i), load(x + i)));
  vec factor = splat(1.0f / __builtin_sqrtf(lanes_sum(squares) / n + eps));
  for (i32 i = 0; i < n; i += 4) store(out + i, mul(mul(load(x + i), factor), load(weight + i)));
}

/* gate = gelu(gate) * up, with the tanh approximation: x / (1 + e^(-2u)), u = sqrt(2 / pi) * (x + 0.044715 x^3). */
EXPORT(gated_gelu) void gated_gelu(f32 *gate, const f32 *up, i32 n) {
  for (i32 i = 0; i < n; i += 4) {
    vec x = load(gate + i), cubic = mul(mul(mul(x, x), x), splat(0.044715f));
    vec e = exponential(mul(add(x, cubic), splat(-1.5957691216f)));
    store(gate + i, mul(wasm_f32x4_div(x, add(splat(1), e)), load(up + i)));
  }
}

/* Rotary positions: element i of the first half turns with element i of the second; then times `scale`. */
EXPORT(rotate) void rotate(const f32 *x, const f32 *rope, f32 *out, i32 dim, f32 scale) {
  i32 half = dim / 2;
  for (i32 i = 0; i < half; i += 4) {
    vec a = load(x + i), b = load(x + half + i), cosine = load(rope + i), sine = load(rope + half + i);
    store(out + i, mul(sub(mul(a, cosine), mul(b, sine)), splat(scale)));
    store(out + half + i, mul(add(mul(b, cosine), mul(a, sine)), splat(scale)));
  }
}

/* Row `row` of a stored table as floats, times `factor`. */
EXPORT(dequantize) void dequantize(const Matrix *w, i32 row, f32 *out, f32 factor) {
  i32 blocks = w->width / w->block;
  const u8 *codes = w->codes + (unsigned)row * (w->width * w->bits / 8);
  for (i32 i = 0; i < w->width; i++) {
    i32 at = ((row / 4) * blocks + i / w->block) * 4 + row % 4;
    i32 code = w->bits == 8 ? codes[i] : (codes[i / 2] >> (i % 2 * 4)) & 15;
    out[i] = (f32)(code - w->zeros[at]) * w->scales[at] * factor;
  }
}

INLINE f32 half_to_float(u16 h) {
  union { unsigned bits; f32 value; } u = {(unsigned)(h & 0x7fff) << 13};
  u.value *= 0x1p112f;  /* moves the exponent, numbers below 2^-14 included */
  if ((h & 0x7c00) == 0x7c00) u.bits |= 0x7f800000;
  u.bits |= (unsigned)(h & 0x8000) << 16;
  return u.value;
}

/* float16 -> float32 */
EXPORT(widen) void widen(const u16 *in, f32 *out, i32 n) {
  for (i32 i = 0; i < n; i++) out[i] = half_to_float(in[i]);
}

/* Scales (float16 or float32) and zero points as MatMulNBits has them -> panels; the last one is filled up with 0. */
EXPORT(arrange) void arrange(const Matrix *w, const void *scales, i32 half, const u8 *zeros) {
  i32 blocks = w->width / w->block, zero_bytes = w->bits == 8 ? blocks : (blocks + 1) / 2;
  for (i32 row = 0; row < (w->rows + 3) / 4 * 4; row++)
    for (i32 b = 0; b < blocks; b++) {
      i32 at = ((row / 4) * blocks + b) * 4 + row % 4, from = row * blocks + b, there = row < w->rows;
      w->scales[at] = !there ? 0 : half ? half_to_float(((const u16 *)scales)[from]) : ((const f32 *)scales)[from];
      i32 zero = 1 << (w->bits - 1);
      if (there && zeros) {
        zero = zeros[row * zero_bytes + (w->bits == 8 ? b : b / 2)];
        if (w->bits == 4) zero = (zero >> (b % 2 * 4)) & 15;
      }
      w->zeros[at] = zero;
    }
}

/* ---- Quantised activations ---- */

/* 16 codes in a's order for codes of 8 bits, in `out` of 32 bytes. */
INLINE void put8(u8 *out, vec a) {
#ifdef __wasm_relaxed_simd__
  store(out, wasm_i8x16_abs(a));
  store(out + 16, wasm_v128_xor(wasm_i8x16_shr(a, 7), wasm_i8x16_splat(-128)));
#else
  store(out, wasm_i16x8_extend_low_i8x16(a));
  store(out + 16, wasm_i16x8_extend_high_i8x16(a));
#endif
}

/* 32 codes for codes of 4 bits: the even ones, then the odd ones. */
INLINE void put4(u8 *out, vec a, vec b) {
  vec even = wasm_i8x16_shuffle(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  vec odd = wasm_i8x16_shuffle(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#ifdef __wasm_relaxed_simd__
  store(out, even);
  store(out + 16, odd);
#else
  store(out, wasm_i16x8_extend_low_i8x16(even));
  store(out + 16, wasm_i16x8_extend_high_i8x16(even));
  store(out + 32, wasm_i16x8_extend_low_i8x16(odd));
  store(out + 48, wasm_i16x8_extend_high_i8x16(odd));
#endif
}

/* Bytes of an activation whose partner has 4 bits; with 8 bits it takes two in both builds. */
enum { BYTES4 = RELAXED ? 1 : 2 };

INLINE vec round16(const f32 *x, vec inverse) {
  vec i[4];
  for (i32 j = 0; j < 4; j++)
    i[j] = wasm_i32x4_trunc_sat_f32x4(wasm_f32x4_nearest(mul(load(x + 4 * j), inverse)));
  return wasm_i8x16_narrow_i16x8(wasm_i16x8_narrow_i32x4(i[0], i[1]), wasm_i16x8_narrow_i32x4(i[2], i[3]));
}

INLINE i32 bytes_sum(vec v) {
  vec s = wasm_i32x4_extadd_pairwise_i16x8(wasm_i16x8_extadd_pairwise_i8x16(v));
  return wasm_i32x4_extract_lane(s, 0) + wasm_i32x4_extract_lane(s, 1) + wasm_i32x4_extract_lane(s, 2) +
         wasm_i32x4_extract_lane(s, 3);
}

/* A row as integers: per block a = round(x * 127 / largest), half to even, as onnxruntime does at accuracy level 4. */
EXPORT(quantize) void quantize(const f32 *x, i32 width, i32 bits, i32 block, u8 *codes, f32 *sums) {
  for (i32 b = 0; b < width / block; b++, x += block, sums += 4) {
    vec largest = splat(0);
    for (i32 i = 0; i < block; i += 4) largest = wasm_f32x4_pmax(largest, wasm_f32x4_abs(load(x + i)));
    f32 top = max(max(wasm_f32x4_extract_lane(largest, 0), wasm_f32x4_extract_lane(largest, 1)),
                  max(wasm_f32x4_extract_lane(largest, 2), wasm_f32x4_extract_lane(largest, 3)));
    vec inverse = splat(top > 0 ? 127.0f / top : 0);
    i32 sum = 0, size = 0;
    for (i32 i = 0; i < block; i += 32) {
      vec a = round16(x + i, inverse), c = round16(x + i + 16, inverse);
      sum += bytes_sum(a) + bytes_sum(c);
      size += bytes_sum(wasm_i8x16_abs(a)) + bytes_sum(wasm_i8x16_abs(c));
      if (bits == 8) {
        put8(codes, a);
        put8(codes + 32, c);
        codes += 64;
      } else {
        put4(codes, a, c);
        codes += 32 * BYTES4;
      }
    }
    sums[0] = top / 127.0f;
    sums[1] = sum;
    sums[2] = RELAXED && bits == 8 ? (size - sum) / 2 + 128 * sum : 0;  /* |a| of negative a; and codes are less 128 */
    sums[3] = 0;
  }
}

/* ---- The product ---- */
#ifdef __wasm_relaxed_simd__
INLINE vec dot8(vec acc, vec q, const u8 *a) {
  return wasm_i32x4_relaxed_dot_i8x16_i7x16_add(wasm_v128_xor(q, load(a + 16)), load(a), acc);
}
INLINE vec dot4(vec acc, vec low, vec high, const u8 *a) {
  acc = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(load(a), low, acc);
  return wasm_i32x4_relaxed_dot_i8x16_i7x16_add(load(a + 16), high, acc);
}
#else
INLINE vec dot8(vec acc, vec q, const u8 *a) {
  acc = wasm_i32x4_add(acc, wasm_i32x4_dot_i16x8(wasm_u16x8_extend_low_u8x16(q), load(a)));
  return wasm_i32x4_add(acc, wasm_i32x4_dot_i16x8(wasm_u16x8_extend_high_u8x16(q), load(a + 16)));
}
INLINE vec dot4(vec acc, vec low, vec high, const u8 *a) { return dot8(dot8(acc, low, a), high, a + 32); }
#endif

/* Four rows of a matrix: where their codes begin, and their panel of scales and zero points. */
typedef struct { const u8 *row[4]; const f32 *scales; const u8 *zeros; } Panel;

/* One vector of codes against `rows` rows of activations, each with a sum of its own. Sizes are constants where this
 * and the next functions are inlined. */
INLINE void dots(vec *acc, vec q, const u8 *a, i32 stride, const i32 rows, const i32 bits) {
  vec half = wasm_i8x16_splat(15), low = wasm_v128_and(q, half), high = wasm_v128_and(wasm_u16x8_shr(q, 4), half);
  for (i32 r = 0; r < rows; r++)
    acc[4 * r] = bits == 8 ? dot8(acc[4 * r], q, a + r * stride) : dot4(acc[4 * r], low, high, a + r * stride);
}

/* Four results with block b added, of which acc[j] holds the sums of row j of the panel. */
INLINE vec add_block(vec result, const vec *acc, const Panel *p, i32 b, const f32 *sums) {
  vec zeros = wasm_u32x4_extend_low_u16x8(wasm_u16x8_extend_low_u8x16(wasm_v128_load32_zero(p->zeros + 4 * b)));
  vec exact = add(wasm_f32x4_convert_i32x4(int_sums(acc[0], acc[1], acc[2], acc[3])), splat(sums[2]));
  exact = sub(exact, mul(wasm_f32x4_convert_i32x4(zeros), splat(sums[1])));
  return add(result, mul(exact, mul(load(p->scales + 4 * b), splat(sums[0]))));
}

/* Four results for one row of activations, which waits for memory. So the rows of the matrix are read one after the
 * other, RUN blocks of each: one stream, which processors read ahead. Their sums wait in `part` for the other rows. */
INLINE void panel_once(const Panel *p, i32 blocks, const u8 *a, const f32 *sums, vec *out, const i32 bits,
                       const i32 block) {
  const i32 bytes = block * bits / 8, ratio = bits == 8 ? 2 : 2 * BYTES4;
  vec part[RUN][4], result = splat(0);
  for (i32 from = 0; from < blocks; from += RUN) {
    i32 run = min(RUN, blocks - from);
#pragma clang loop unroll(disable)
    for (i32 j = 0; j < 4; j++) {
      const u8 *w = p->row[j] + from * bytes, *x = a + from * bytes * ratio;
#pragma clang loop unroll(disable)
      for (i32 b = 0; b < run; b++, w += bytes, x += bytes * ratio) {
        vec acc = splat(0);
#pragma clang loop unroll(full)
        for (i32 k = 0; k < bytes; k += 16) dots(&acc, load(w + k), x + k * ratio, 0, 1, bits);
        part[b][j] = acc;
      }
    }
#pragma clang loop unroll(disable)
    for (i32 b = 0; b < run; b++) result = add_block(result, part[b], p, from + b, sums + 4 * (from + b));
  }
  out[0] = result;
}

/* Four results for each of two rows of activations, which wait for the arithmetic: every code that is read meets both,
 * and the eight sums of a block stay in registers. */
INLINE void panel_twice(const Panel *p, i32 blocks, const u8 *a, i32 stride, const f32 *sums, vec *out, const i32 bits,
                        const i32 block) {
  const u8 *w0 = p->row[0], *w1 = p->row[1], *w2 = p->row[2], *w3 = p->row[3];
  const i32 bytes = block * bits / 8, step = min(bytes, 32), ratio = bits == 8 ? 2 : 2 * BYTES4;
  out[0] = out[1] = splat(0);
  for (i32 b = 0; b < blocks; b++) {
    vec acc[8];
    for (i32 i = 0; i < 8; i++) acc[i] = splat(0);
#pragma clang loop unroll(disable)
    for (const u8 *end = w0 + bytes; w0 < end;) {
#pragma clang loop unroll(full)
      for (i32 k = 0; k < step; k += 16) {
        vec q[4] = {load(w0 + k), load(w1 + k), load(w2 + k), load(w3 + k)};
        for (i32 j = 0; j < 4; j++) dots(acc + j, q[j], a + k * ratio, stride, 2, bits);
      }
      w0 += step, w1 += step, w2 += step, w3 += step, a += step * ratio;
    }
    out[0] = add_block(out[0], acc, p, b, sums + 4 * b);
    out[1] = add_block(out[1], acc + 4, p, b, sums + 4 * (blocks + b));
  }
}

#define CASE(bits, block) \
  case bits * 1000 + block: \
    if (rows == 2) panel_twice(p, blocks, a, stride, sums, out, bits, block); \
    else panel_once(p, blocks, a, sums, out, bits, block); \
    break;
static void panel_rows(const Matrix *w, const Panel *p, const u8 *a, const f32 *sums, vec *out, i32 rows) {
  i32 blocks = w->width / w->block, stride = 2 * w->width;
  switch (w->bits * 1000 + w->block) {
    CASE(4, 32) CASE(4, 64) CASE(4, 128) CASE(4, 256) CASE(8, 32) CASE(8, 64) CASE(8, 128) CASE(8, 256)
  }
}

/* The panel of rows n...n + 3 of a matrix, or of picked[n]..., whose scales and zeros are then gathered in `s`, `z`. */
INLINE Panel panel_of(const Matrix *w, const i32 *picked, i32 n, i32 count, f32 *s, u8 *z) {
  i32 blocks = w->width / w->block;
  unsigned bytes = w->width * w->bits / 8;
  Panel p = {{0}, w->scales + n * blocks, w->zeros + n * blocks};
  for (i32 j = 0; j < 4; j++) {
    i32 row = min(n + j, count - 1);
    if (picked) row = picked[row];
    p.row[j] = w->codes + row * bytes;
    if (picked)
      for (i32 b = 0; b < blocks; b++) {
        i32 at = ((row / 4) * blocks + b) * 4 + row % 4;
        s[4 * b + j] = w->scales[at], z[4 * b + j] = w->zeros[at];
      }
  }
  if (picked) p.scales = s, p.zeros = z;
  return p;
}

/* Read one word of each cache line, in order, so that what follows finds them in the cache whatever its order is. */
static void fetch(const u8 *p, i32 bytes) {
  for (i32 i = 0; i < bytes; i += 64) (void)*(const volatile u8 *)(p + i);
}

/* Results n = from...to of `rows` rows: out[r * stride + (columns ? columns[n] : n)] for rows (picked or all) of w. As
 * many panels as stay in the first-level cache meet each pair of rows, and write their results side by side. */
static void product_range(const Matrix *w, Quantized x, i32 rows, f32 *out, i32 stride, const i32 *picked,
                          const i32 *columns, i32 count, i32 from, i32 to) {
  f32 s[4 * MAX_BLOCKS];
  u8 z[4 * MAX_BLOCKS];
  Panel panel[GROUP];
  i32 blocks = w->width / w->block, group = picked ? 1 : max(1, min(GROUP, CACHED / (w->width * w->bits / 2)));
  for (i32 first = from; first < to; first += 4 * group) {
    i32 last = min(to, first + 4 * group);
    for (i32 n = first; n < last; n += 4) panel[(n - first) / 4] = panel_of(w, picked, n, count, s, z);
    if (rows > 1 && !picked) fetch(panel[0].row[0], (last - first) * (w->width * w->bits / 8));
    for (i32 r = 0; r < rows; r += 2) {
      i32 both = min(2, rows - r);
      for (i32 n = first; n < last; n += 4) {
        vec found[2];
        panel_rows(w, panel + (n - first) / 4, x.codes + r * 2 * w->width, x.sums + r * blocks * 4, found, both);
        for (i32 i = 0; i < both; i++) {
          f32 *to_row = out + (r + i) * stride, lane[4];
          if (!columns && n + 4 <= to) { store(to_row + n, found[i]); continue; }
          store(lane, found[i]);
          for (i32 j = 0; j < min(4, to - n); j++) to_row[columns ? columns[n + j] : n + j] = lane[j];
        }
      }
    }
  }
}

EXPORT(product) void product(const Matrix *w, u8 *codes, f32 *sums, i32 rows, f32 *out, i32 stride, const i32 *picked,
                             const i32 *columns, i32 count) {
  product_range(w, (Quantized){codes, sums}, rows, out, stride, picked, columns, count, 0, count);
}

/* ---- Attention ---- */

/* scores[r][t - begin] = query r . key t for t = lo...hi; `heads` is 1 or 2 queries that lie side by side. */
INLINE void score(const f32 *q, const f32 *keys, i32 dim, i32 lo, i32 hi, f32 *scores, i32 stride, const i32 heads) {
  i32 t = lo;
  for (; t + 4 <= hi; t += 4) {
    const f32 *k = keys + t * dim;
    vec acc[2][4];
    for (i32 r = 0; r < heads; r++) acc[r][0] = acc[r][1] = acc[r][2] = acc[r][3] = splat(0);
    for (i32 i = 0; i < dim; i += 4)
      for (i32 j = 0; j < 4; j++) {
        vec key = load(k + j * dim + i);
        for (i32 r = 0; r < heads; r++) acc[r][j] = add(acc[r][j], mul(load(q + r * dim + i), key));
      }
    for (i32 r = 0; r < heads; r++)
      store(scores + r * stride + t, float_sums(acc[r][0], acc[r][1], acc[r][2], acc[r][3]));
  }
  for (; t < hi; t++)
    for (i32 r = 0; r < heads; r++) {
      vec acc = splat(0);
      for (i32 i = 0; i < dim; i += 4) acc = add(acc, mul(load(q + r * dim + i), load(keys + t * dim + i)));
      scores[r * stride + t] = wasm_f32x4_extract_lane(float_sums(acc, acc, acc, acc), 0);
    }
}

/* scores = e^(score - largest) / their sum; what is behind the last is written over up to the next multiple of 4. */
EXPORT(softmax) void softmax(f32 *s, i32 n) {
  f32 top = s[0];
  for (i32 i = 1; i < n; i++) top = max(top, s[i]);
  for (i32 i = n; i % 4; i++) s[i] = -1e30f;
  vec sum = splat(0);
  for (i32 i = 0; i < n; i += 4) {
    vec e = exponential(sub(load(s + i), splat(top)));
    store(s + i, e);
    sum = add(sum, e);
  }
  vec factor = splat(1.0f / lanes_sum(sum));
  for (i32 i = 0; i < n; i += 4) store(s + i, mul(load(s + i), factor));
}

/* out[r] += weights[r][t] * value t for t = lo...hi, in this order. */
INLINE void mix(const f32 *weights, i32 stride, const f32 *values, i32 dim, i32 lo, i32 hi, f32 *out, const i32 heads) {
  for (i32 i = 0; i < dim; i += 16) {
    vec acc[2][4];
    for (i32 r = 0; r < heads; r++) for (i32 j = 0; j < 4; j++) acc[r][j] = load(out + r * dim + i + 4 * j);
    for (i32 t = lo; t < hi; t++) {
      vec weight[2];
      for (i32 r = 0; r < heads; r++) weight[r] = wasm_v128_load32_splat(weights + r * stride + t);
      for (i32 j = 0; j < 4; j++) {
        vec value = load(values + t * dim + i + 4 * j);
        for (i32 r = 0; r < heads; r++) acc[r][j] = add(acc[r][j], mul(weight[r], value));
      }
    }
    for (i32 r = 0; r < heads; r++) for (i32 j = 0; j < 4; j++) store(out + r * dim + i + 4 * j, acc[r][j]);
  }
}

/* Attention of `rows` positions from `first` on, of 1 or 2 heads that share keys and values. A block of keys is used by
 * all positions before the next one is read. Scores: room for [rows][2][stride], stride a multiple of 4 > keys seen. */
INLINE void attend_heads(const f32 *q, i32 q_stride, i32 rows, i32 first, const f32 *keys, const f32 *values, i32 dim,
                         i32 window, f32 *scores, i32 stride, f32 *out, i32 out_stride, const i32 heads) {
#define BEGIN(r) (window ? max(0, first + (r) + 1 - window) : 0)
#define EACH_BLOCK(call) \
  for (i32 k = BEGIN(0); k < first + rows; k += KEYS) \
    for (i32 r = 0; r < rows; r++) { \
      i32 lo = max(k, BEGIN(r)), hi = min(k + KEYS, first + r + 1); \
      f32 *s = scores + r * 2 * stride - BEGIN(r); \
      if (lo < hi) call; \
    }
  EACH_BLOCK(score(q + r * q_stride, keys, dim, lo, hi, s, stride, heads))
  for (i32 r = 0; r < rows; r++)
    for (i32 h = 0; h < heads; h++) {
      softmax(scores + (r * 2 + h) * stride, first + r + 1 - BEGIN(r));
      for (i32 i = 0; i < dim; i += 4) store(out + r * out_stride + h * dim + i, splat(0));
    }
  EACH_BLOCK(mix(s, stride, values, dim, lo, hi, out + r * out_stride, heads))
}

EXPORT(attend) void attend(const f32 *q, i32 q_stride, i32 rows, i32 first, const f32 *keys, const f32 *values, i32 dim,
                           i32 window, f32 *scores, i32 stride, f32 *out, i32 out_stride, i32 heads) {
  if (heads == 2) attend_heads(q, q_stride, rows, first, keys, values, dim, window, scores, stride, out, out_stride, 2);
  else attend_heads(q, q_stride, rows, first, keys, values, dim, window, scores, stride, out, out_stride, 1);
}

/* ---- The pass ---- */
#define TASKS(i, n) for (i32 i; (i = take(m)) < (n);)

static void quantize_for(Model *m, const Matrix *parts, i32 count, const f32 *x, i32 row) {
  for (i32 i = 0; i < count && parts[i].rows; i++) {
    const Matrix *w = parts + i;
    if (i && w->bits == parts[i - 1].bits) continue;  /* neighbours of one width have one block size */
    Quantized *q = &m->quantized[w->bits == 8];
    quantize(x, w->width, w->bits, w->block, q->codes + row * 2 * w->width, q->sums + row * (w->width / w->block) * 4);
  }
}

/* One product, shared by all threads in runs of panels. */
static void multiply(Model *m, const Matrix *w, i32 rows, f32 *out, i32 stride, const i32 *picked, const i32 *columns,
                     i32 count) {
  i32 panels = (count + 3) / 4, run = max(1, panels / (m->threads == 1 ? 1 : 8 * m->threads));
  TASKS(i, (panels + run - 1) / run)
    product_range(w, m->quantized[w->bits == 8], rows, out, stride, picked, columns, count, i * run * 4,
                  min(count, (i + 1) * run * 4));
  barrier(m);
}

static void multiply_parts(Model *m, const Matrix *parts, i32 count, i32 rows, f32 *out, i32 stride) {
  for (i32 i = 0, at = 0; i < count && parts[i].rows; at += parts[i++].rows)
    multiply(m, parts + i, rows, out + at, stride, 0, 0, parts[i].rows);
}

/* x += norm(branch), for one row. */
static void add_branch(Model *m, const f32 *weight, i32 row) {
  i32 n = m->hidden;
  f32 *x = m->x + row * n, *branch = m->branch + row * n;
  norm(branch, weight, branch, n, m->eps);
  for (i32 i = 0; i < n; i += 4) store(x + i, add(load(x + i), load(branch + i)));
}

/* Queries normed and rotated in place; keys too, into the cache with the values. */
static void place_heads(Model *m, const Layer *l, i32 row) {
  i32 dim = m->dim, position = m->first + row;
  f32 *q = m->qkv + row * (m->heads + 2 * m->kv_heads) * dim, *k = q + m->heads * dim, *v = k + m->kv_heads * dim;
  const f32 *rope = l->rope + position * dim;
  for (i32 h = 0; h < m->heads; h++) {
    norm(q + h * dim, l->query_norm, q + h * dim, dim, m->eps);
    rotate(q + h * dim, rope, q + h * dim, dim, m->attention_scale);
  }
  for (i32 h = 0; h < m->kv_heads; h++) {
    i32 to = (h * m->capacity + position) * dim;
    norm(k + h * dim, l->key_norm, k + h * dim, dim, m->eps);
    rotate(k + h * dim, rope, l->keys + to, dim, 1.0f);
    for (i32 i = 0; i < dim; i += 4) store(l->values + to + i, load(v + h * dim + i));
  }
}

/* Attention of rows from...count; a task is a tile of positions and one or two heads. */
static void attend_rows(Model *m, const Layer *l, i32 from, i32 thread) {
  i32 dim = m->dim, rows = m->count - from, tile = rows > TILE ? TILE : 1, tiles = (rows + tile - 1) / tile;
  i32 group = m->heads / m->kv_heads, stride = m->capacity + 4;
  i32 together = tiles * m->kv_heads * ((group + 1) / 2) < m->threads ? 1 : 2;  /* heads in a task */
  i32 pairs = (group + together - 1) / together;
  i32 q_stride = (m->heads + 2 * m->kv_heads) * dim, out_stride = m->heads * dim;
  f32 *scores = m->scores + thread * TILE * 2 * stride;
  TASKS(i, tiles * pairs * m->kv_heads) {
    i32 row = from + i / (pairs * m->kv_heads) * tile, kv = i % m->kv_heads, pair = i / m->kv_heads % pairs;
    i32 head = kv * group + pair * together;
    attend(m->qkv + row * q_stride + head * dim, q_stride, min(tile, m->count - row), m->first + row,
           l->keys + kv * m->capacity * dim, l->values + kv * m->capacity * dim, dim, l->window, scores, stride,
           m->mixed + row * out_stride + head * dim, out_stride, min(together, group - pair * together));
  }
  barrier(m);
}

/* A layer; the last one goes on with the last `keep` rows, since nothing reads the others. Returns the first row. */
static i32 run_layer(Model *m, i32 index, i32 thread) {
  const Layer *l = m->layer + index;
  i32 hidden = m->hidden, count = m->count, wide = m->heads * m->dim, from = 0;
  TASKS(r, count) {
    if (index) add_branch(m, l[-1].post_feedforward_norm, r);
    norm(m->x + r * hidden, l->input_norm, m->normed + r * hidden, hidden, m->eps);
    quantize_for(m, l->qkv, 3, m->normed + r * hidden, r);
  }
  barrier(m);
  multiply_parts(m, l->qkv, 3, count, m->qkv, wide + 2 * m->kv_heads * m->dim);
  TASKS(r, count) place_heads(m, l, r);
  barrier(m);
  if (index == m->layers - 1) from = count - m->keep;
  if (from == count) return from;
  attend_rows(m, l, from, thread);
  TASKS(r, count - from) quantize_for(m, &l->out, 1, m->mixed + (from + r) * wide, r);
  barrier(m);
  multiply_parts(m, &l->out, 1, count - from, m->branch + from * hidden, hidden);
  TASKS(r, count - from) {
    add_branch(m, l->post_attention_norm, from + r);
    norm(m->x + (from + r) * hidden, l->pre_feedforward_norm, m->normed + r * hidden, hidden, m->eps);
    quantize_for(m, l->gate_up, 2, m->normed + r * hidden, r);
  }
  barrier(m);
  multiply_parts(m, l->gate_up, 2, count - from, m->gate_up, 2 * m->inner);
  TASKS(r, count - from) {
    f32 *gate = m->gate_up + r * 2 * m->inner;
    gated_gelu(gate, gate + m->inner, m->inner);
    quantize_for(m, &l->down, 1, gate, r);
  }
  barrier(m);
  multiply_parts(m, &l->down, 1, count - from, m->branch + from * hidden, hidden);
  return from;
}

/* Logits of the last `keep` rows, of all tokens or the picked ones; those of `precise` replace the others'. */
static void run_head(Model *m, i32 from) {
  i32 hidden = m->hidden;
  TASKS(r, m->keep) {
    add_branch(m, m->layer[m->layers - 1].post_feedforward_norm, from + r);
    norm(m->x + (from + r) * hidden, m->final_norm, m->normed + r * hidden, hidden, m->eps);
    quantize_for(m, &m->table, 2, m->normed + r * hidden, r);
  }
  barrier(m);
  multiply(m, &m->table, m->keep, m->logits, m->picks, m->picked, 0, m->picks);
  if (m->precise_picks)
    multiply(m, &m->precise, m->keep, m->logits, m->picks, m->precise_picked, m->precise_columns, m->precise_picks);
}

static void pass(Model *m, i32 thread) {
  TASKS(r, m->count) {
    i32 id = m->ids[r], place = m->precise.rows ? m->places[id] : -1;
    dequantize(place < 0 ? &m->table : &m->precise, place < 0 ? id : place, m->x + r * m->hidden, m->embedding_scale);
  }
  barrier(m);
  i32 from = 0;
  for (i32 i = 0; i < m->layers; i++) from = run_layer(m, i, thread);
  if (m->keep) run_head(m, from);
  barrier(m);  /* behind it no thread reads the job any more, and decoder.js may write the next one */
}

/* The first thread's part of a job, which begins it; returns when all have finished. */
EXPORT(run) void run(Model *m) {
#ifdef __wasm_atomics__
  announce(m, &m->generation, m->generation + 1);
#endif
  pass(m, 0);
}

#ifdef __wasm_atomics__
/* What a helper thread does until `stop`: sleep, then its part of the next job. */
EXPORT(help) void help(Model *m, i32 thread) {
  for (i32 seen = 0;; seen++) {
    await_change(m, &m->generation, seen, -1);
    if (peek(&m->quit)) return;
    pass(m, thread);
  }
}

/* For a helper thread that goes under: who waits for it traps. */
EXPORT(fail) void fail(Model *m) {
  __atomic_store_n(&m->quit, 1, __ATOMIC_SEQ_CST);
  __builtin_wasm_memory_atomic_notify(&m->phase, m->threads);
}

EXPORT(stop) void stop(Model *m) {
  __atomic_store_n(&m->quit, 1, __ATOMIC_SEQ_CST);
  announce(m, &m->generation, m->generation + 1);
}
#endif
