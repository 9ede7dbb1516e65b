/* Attention within windows on a CPU: window_attention.py has the contract.

   Compiled for a number of TOKENS in a window and of channels in a head, SIZE. One window of one head at a time: all
   that it needs stays in the core's first cache, and a row of scores in its registers. */

#include <cstddef>

using std::size_t;

#define LANES 16
#define WIDTH ((TOKENS + LANES - 1) / LANES) /* vectors in a row of scores */
#define DEPTH ((SIZE + LANES - 1) / LANES)   /* vectors in a row of channels */
#define ROWS ((TOKENS + 7) / 8 * 8)          /* tokens, rounded up to the rows of a product's block */
#define PARTS 16                             /* sums of the bias's gradient: as many on any number of threads */

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int Whole __attribute__((vector_size(4 * LANES)));
typedef union { Lanes lanes[WIDTH]; float each[WIDTH * LANES]; } Row;
typedef union { Lanes lanes[DEPTH]; float each[DEPTH * LANES]; } Token;

static inline Lanes exponential(Lanes x) /* for x in -inf..0; two units in the last place */
{
    Lanes floor = x < -87.0f ? x * 0.0f - 87.0f : x;
    Lanes steps = floor * 1.44269504f + 12582912.0f; /* rounds to a whole number in the low bits */
    Whole power = (Whole)steps << 23;
    steps -= 12582912.0f;
    Lanes r = floor - steps * 0.693359375f + steps * 2.12194440e-4f; /* |r| <= ln(2) / 2 */
    Lanes p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (Lanes)((Whole)p + power);
}

static inline float total(const Lanes *x, int count)
{
    Lanes sum = x[0];
    float result = 0;
    for (int i = 1; i < count; i++) sum += x[i];
    for (int lane = 0; lane < LANES; lane++) result += sum[lane];
    return result;
}

static inline float largest(const Lanes *x, int count)
{
    Lanes most = x[0];
    for (int i = 1; i < count; i++) most = x[i] > most ? x[i] : most;
    float result = most[0];
    for (int lane = 1; lane < LANES; lane++) result = most[lane] > result ? most[lane] : result;
    return result;
}

/* The channels of one head: rows [TOKENS][SIZE] at `stride`, times `factor`; zero where there are none. */
static void load(Token *rows, const float *from, size_t stride, float factor)
{
    for (int t = 0; t < ROWS; t++)
        for (int c = 0; c < DEPTH * LANES; c++)
            rows[t].each[c] = t < TOKENS && c < SIZE ? factor * from[t * stride + c] : 0.0f;
}

static void load_transposed(Row *columns, const float *from, size_t stride)
{
    for (int c = 0; c < SIZE; c++)
        for (int t = 0; t < WIDTH * LANES; t++) columns[c].each[t] = t < TOKENS ? from[t * stride + c] : 0.0f;
}

static void store(float *to, size_t stride, const Token *rows, float factor)
{
    for (int t = 0; t < TOKENS; t++)
        for (int c = 0; c < SIZE; c++) to[t * stride + c] = factor * rows[t].each[c];
}

/* row += token * columns */
static inline void add_products(Row *row, const Token *token, const Row *columns)
{
    for (int c = 0; c < SIZE; c++)
        for (int i = 0; i < WIDTH; i++) row->lanes[i] += token->each[c] * columns[c].lanes[i];
}

/* softmax(q k' + bias + mask), a row of weights for each token; zero beyond the last token */
static void find_weights(Row *weights, const Token *q, const Row *k, const float *bias, const float *mask)
{
    for (int t = 0; t < TOKENS; t++) {
        Row row = {};
        for (int s = 0; s < WIDTH * LANES; s++) row.each[s] = s < TOKENS ? bias[t * TOKENS + s] : -1e30f;
        if (mask)
            for (int s = 0; s < TOKENS; s++) row.each[s] += mask[t * TOKENS + s];
        add_products(&row, q + t, k);
        float most = largest(row.lanes, WIDTH);
        for (int i = 0; i < WIDTH; i++) row.lanes[i] = exponential(row.lanes[i] - most);
        for (int s = TOKENS; s < WIDTH * LANES; s++) row.each[s] = 0.0f;
        float share = 1.0f / total(row.lanes, WIDTH);
        for (int i = 0; i < WIDTH; i++) weights[t].lanes[i] = row.lanes[i] * share;
    }
}

/* result = x rows, or x' rows: eight results at a time, so that the sums do not wait for each other */
static inline void multiply(Token *result, const Row *x, const Token *rows, int transposed)
{
    for (int first = 0; first < ROWS; first += 8) {
        Token sum[8] = {};
        for (int t = 0; t < TOKENS; t++)
            for (int i = 0; i < 8; i++) {
                float factor = transposed ? x[t].each[first + i] : x[first + i].each[t];
                for (int c = 0; c < DEPTH; c++) sum[i].lanes[c] += factor * rows[t].lanes[c];
            }
        for (int i = 0; i < 8; i++) result[first + i] = sum[i];
    }
}

/* qkv [windows][TOKENS][3][heads][SIZE], bias [heads][TOKENS][TOKENS], mask [masks][TOKENS][TOKENS] or none */
extern "C" void attend(const float *qkv, const float *bias, const float *mask, float *out, long windows, long heads, long masks,
            float scale, int threads)
{
    size_t channels = heads * SIZE, square = TOKENS * TOKENS;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (long w = 0; w < windows; w++)
        for (long h = 0; h < heads; h++) {
            const float *from = qkv + w * TOKENS * 3 * channels + h * SIZE;
            Token q[ROWS], v[ROWS], attended[ROWS];
            Row k[SIZE], weights[ROWS] = {};
            load(q, from, 3 * channels, scale);
            load_transposed(k, from + channels, 3 * channels);
            load(v, from + 2 * channels, 3 * channels, 1.0f);
            find_weights(weights, q, k, bias + h * square, mask ? mask + w % masks * square : NULL);
            multiply(attended, weights, v, 0);
            store(out + w * TOKENS * channels + h * SIZE, channels, attended, 1.0f);
        }
}

/* upstream [windows][TOKENS][heads][SIZE]; of_qkv as qkv; of_bias [PARTS][heads][TOKENS][TOKENS], to be added up */
extern "C" void attend_backward(const float *upstream, const float *qkv, const float *bias, const float *mask, float *of_qkv,
                     float *of_bias, long windows, long heads, long masks, float scale, int threads)
{
    size_t channels = heads * SIZE, square = TOKENS * TOKENS;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (long part = 0; part < PARTS; part++)
        for (long h = 0; h < heads; h++) {
            float *sum = of_bias + (part * heads + h) * square;
            for (size_t i = 0; i < square; i++) sum[i] = 0.0f;
            for (long w = part * windows / PARTS; w < (part + 1) * windows / PARTS; w++) {
                size_t place = w * TOKENS * 3 * channels + h * SIZE;
                const float *from = qkv + place;
                Token q[ROWS], k_rows[ROWS], above[ROWS], result[ROWS];
                Row k[SIZE], v[SIZE], weights[ROWS] = {}, of_scores[ROWS] = {};
                load(q, from, 3 * channels, scale);
                load(k_rows, from + channels, 3 * channels, 1.0f);
                load(above, upstream + w * TOKENS * channels + h * SIZE, channels, 1.0f);
                load_transposed(k, from + channels, 3 * channels);
                load_transposed(v, from + 2 * channels, 3 * channels);
                find_weights(weights, q, k, bias + h * square, mask ? mask + w % masks * square : NULL);
                for (int t = 0; t < TOKENS; t++) {
                    Row row = {};
                    add_products(&row, above + t, v);
                    Row product = {};
                    for (int i = 0; i < WIDTH; i++) product.lanes[i] = row.lanes[i] * weights[t].lanes[i];
                    float mean = total(product.lanes, WIDTH);
                    for (int i = 0; i < WIDTH; i++)
                        of_scores[t].lanes[i] = product.lanes[i] - mean * weights[t].lanes[i];
                    for (int s = 0; s < TOKENS; s++) sum[t * TOKENS + s] += of_scores[t].each[s];
                }
                multiply(result, of_scores, k_rows, 0);
                store(of_qkv + place, 3 * channels, result, scale);
                multiply(result, of_scores, q, 1);
                store(of_qkv + place + channels, 3 * channels, result, 1.0f);
                multiply(result, weights, above, 1);
                store(of_qkv + place + 2 * channels, 3 * channels, result, 1.0f);
            }
        }
}
