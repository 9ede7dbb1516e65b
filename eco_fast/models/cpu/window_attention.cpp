/* Attention within windows on a CPU: window_attention.py has the contract.

   Compiled for a WINDOW's side and the channels of a head, SIZE. One window of one head at a time: all that it needs
   stays in the core's first caches. Matrices of scores have a row for each key, so that queries are side by side in
   registers: the sums and maxima of the softmax are those of whole registers, and most products need no other form of
   the tokens than the image's. Tokens are read where the image has them, and written there: nothing is rolled, cut or
   joined. */

#include <cmath>
#include <cstddef>
#include <cstring>

using std::size_t;

#define TOKENS (WINDOW * WINDOW)
#define SCALE (1 / sqrtf(SIZE))
#define LANES 16
#define WIDTH ((TOKENS + LANES - 1) / LANES) /* vectors in a row of queries */
#define DEPTH ((SIZE + LANES - 1) / LANES)   /* vectors in a row of channels */
#define KEYS (TOKENS % 8 ? TOKENS % 4 ? 1 : 4 : 8)                /* whose sums fit into the registers */
#define CHANNELS (SIZE % 5 ? SIZE % 4 ? SIZE % 3 ? 1 : 3 : 4 : 5) /* likewise */

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int Whole __attribute__((vector_size(4 * LANES)));
typedef union { Lanes lanes[WIDTH]; float each[WIDTH * LANES]; } Row;
typedef union { Lanes lanes[DEPTH]; float each[DEPTH * LANES]; } Token;

static inline Row every(float value)
{
    Row row;
    for (int i = 0; i < WIDTH; i++) row.lanes[i] = Lanes{} + value;
    return row;
}

static inline Lanes exponential(Lanes x) /* for x in -inf..0; two units in the last place */
{
    Lanes least = Lanes{} - 87.0f, floor = x < least ? least : x;
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

/* Where the tokens of a window are in a batch of images, in tokens; the windows' grid begins at (shift, shift) */
static void locate(size_t *places, long number, long height, long width, long shift)
{
    long across = width / WINDOW, of_image = height / WINDOW * across;
    long image = number / of_image, top = number % of_image / across * WINDOW, left = number % across * WINDOW;
    for (int t = 0; t < TOKENS; t++) {
        long row = top + t / WINDOW + shift, column = left + t % WINDOW + shift;
        row -= row < height ? 0 : height;
        places[t] = (image * height + row) * width + column - (column < width ? 0 : width);
    }
}

/* The channels of one head, of a window's tokens; zero where there are none */
static void load(Token *rows, const float *from, const size_t *places, size_t stride)
{
    for (int t = 0; t < TOKENS; t++) {
        rows[t] = {};
        memcpy(rows[t].each, from + places[t] * stride, SIZE * sizeof(float));
    }
}

/* The same, a row for each channel */
static void load_transposed(Row *columns, const float *from, const size_t *places, size_t stride)
{
    for (int c = 0; c < SIZE; c++) columns[c].lanes[WIDTH - 1] = Lanes{};
    for (int t = 0; t < TOKENS; t++)
        for (int c = 0; c < SIZE; c++) columns[c].each[t] = from[places[t] * stride + c];
}

static void store_transposed(float *to, const size_t *places, size_t stride, const Row *columns)
{
    for (int t = 0; t < TOKENS; t++)
        for (int c = 0; c < SIZE; c++) to[places[t] * stride + c] = columns[c].each[t];
}

static inline void scale(Row *rows, int count, const Row &factors)
{
    for (int c = 0; c < count; c++)
        for (int i = 0; i < WIDTH; i++) rows[c].lanes[i] *= factors.lanes[i];
}

/* row += token * columns */
static inline void add_products(Row *row, const float *token, const Row *columns)
{
    for (int c = 0; c < SIZE; c++)
        for (int i = 0; i < WIDTH; i++) row->lanes[i] += token[c] * columns[c].lanes[i];
}

/* k q' / sqrt(SIZE) + bias + mask, and each query's largest */
static Row find_scores(Row *scores, const float *q, const float *k, const size_t *places, size_t stride,
                       const float *bias, const float *mask)
{
    Row columns[SIZE], most = every(-INFINITY);
    load_transposed(columns, q, places, stride);
    scale(columns, SIZE, every(SCALE));
    for (int s = 0; s < TOKENS; s++) {
        Row row = {};
        for (int t = 0; t < TOKENS; t++) row.each[t] = bias[s * TOKENS + t];
        if (mask)
            for (int t = 0; t < TOKENS; t++) row.each[t] += mask[s * TOKENS + t];
        add_products(&row, k + places[s] * stride, columns);
        for (int i = 0; i < WIDTH; i++)
            most.lanes[i] = row.lanes[i] > most.lanes[i] ? row.lanes[i] : most.lanes[i];
        scores[s] = row;
    }
    return most;
}

/* result = tokens' x, a row for each channel: CHANNELS at a time, so that the sums do not wait for each other */
static inline void multiply_transposed(Row *result, const float *tokens, const size_t *places, size_t stride,
                                       const Row *x)
{
    for (int first = 0; first < SIZE; first += CHANNELS) {
        Row sum[CHANNELS] = {};
        for (int s = 0; s < TOKENS; s++) {
            const float *token = tokens + places[s] * stride + first;
            for (int c = 0; c < CHANNELS; c++)
                for (int i = 0; i < WIDTH; i++) sum[c].lanes[i] += token[c] * x[s].lanes[i];
        }
        for (int c = 0; c < CHANNELS; c++) result[first + c] = sum[c];
    }
}

/* The window's tokens at `to` become factor * x tokens: KEYS at a time, likewise */
static inline void multiply(float *to, const Row *x, const Token *tokens, float factor, const size_t *places,
                            size_t stride)
{
    for (int first = 0; first < TOKENS; first += KEYS) {
        Token sum[KEYS] = {};
        for (int t = 0; t < TOKENS; t++)
            for (int i = 0; i < KEYS; i++)
                for (int c = 0; c < DEPTH; c++) sum[i].lanes[c] += x[first + i].each[t] * tokens[t].lanes[c];
        for (int i = 0; i < KEYS; i++) {
            for (int c = 0; c < DEPTH; c++) sum[i].lanes[c] *= factor;
            memcpy(to + places[first + i] * stride, sum[i].each, SIZE * sizeof(float));
        }
    }
}

/* qkv [images][height][width][3][heads][SIZE], bias [heads][TOKENS][TOKENS], mask [windows of an image][TOKENS][TOKENS]
   or none, both with a row for each key; out [images][height][width][heads][SIZE] */
extern "C" void attend(const float *qkv, const float *bias, const float *mask, float *out, long images, long height,
                       long width, long shift, long heads, long threads)
{
    size_t channels = heads * SIZE, square = TOKENS * TOKENS;
    long of_image = height / WINDOW * (width / WINDOW);
#pragma omp parallel for num_threads(threads)
    for (long w = 0; w < images * of_image; w++) {
        size_t places[TOKENS];
        locate(places, w, height, width, shift);
        for (long h = 0; h < heads; h++) {
            const float *q = qkv + h * SIZE, *k = q + channels, *v = k + channels;
            Row weights[TOKENS], attended[SIZE], sum = {};
            Row most = find_scores(weights, q, k, places, 3 * channels, bias + h * square,
                                   mask ? mask + w % of_image * square : NULL);
            for (int s = 0; s < TOKENS; s++)
                for (int i = 0; i < WIDTH; i++) {
                    weights[s].lanes[i] = exponential(weights[s].lanes[i] - most.lanes[i]);
                    sum.lanes[i] += weights[s].lanes[i];
                }
            multiply_transposed(attended, v, places, 3 * channels, weights);
            for (int i = 0; i < WIDTH; i++) sum.lanes[i] = 1.0f / sum.lanes[i];
            scale(attended, SIZE, sum);
            store_transposed(out + h * SIZE, places, channels, attended);
        }
    }
}

/* upstream as out; of_qkv as qkv; of_bias [parts][heads][TOKENS][TOKENS], to be added up */
extern "C" void attend_backward(const float *upstream, const float *qkv, const float *bias, const float *mask,
                                float *of_qkv, float *of_bias, long images, long height, long width, long shift,
                                long heads, long parts, long threads)
{
    size_t channels = heads * SIZE, stride = 3 * channels, square = TOKENS * TOKENS;
    long of_image = height / WINDOW * (width / WINDOW), windows = images * of_image;
#pragma omp parallel for num_threads(threads)
    for (long part = 0; part < parts; part++) {
        memset(of_bias + part * heads * square, 0, heads * square * sizeof(float));
        for (long item = part * windows / parts * heads; item < (part + 1) * windows / parts * heads; item++) {
            long w = item / heads, h = item % heads; /* heads in turn: they share the lines of the cache */
            const float *q = qkv + h * SIZE, *k = q + channels, *v = k + channels, *above = upstream + h * SIZE;
            float *of_q = of_qkv + h * SIZE, *sums = of_bias + (part * heads + h) * square;
            size_t places[TOKENS];
            Row weights[TOKENS], of_scores[TOKENS], columns[SIZE], sum = {}, mean = {};
            Token rows[TOKENS];
            locate(places, w, height, width, shift);
            Row most = find_scores(weights, q, k, places, stride, bias + h * square,
                                   mask ? mask + w % of_image * square : NULL);
            load_transposed(columns, above, places, channels);
            for (int s = 0; s < TOKENS; s++) {
                Row of_weight = {};
                add_products(&of_weight, v + places[s] * stride, columns);
                for (int i = 0; i < WIDTH; i++) {
                    Lanes weight = exponential(weights[s].lanes[i] - most.lanes[i]);
                    sum.lanes[i] += weight;
                    mean.lanes[i] += weight * of_weight.lanes[i];
                    weights[s].lanes[i] = weight;
                    of_scores[s].lanes[i] = of_weight.lanes[i];
                }
            }
            for (int i = 0; i < WIDTH; i++) sum.lanes[i] = 1.0f / sum.lanes[i];
            scale(&mean, 1, sum);
            scale(weights, TOKENS, sum);
            for (int s = 0; s < TOKENS; s++) {
                for (int i = 0; i < WIDTH; i++)
                    of_scores[s].lanes[i] = weights[s].lanes[i] * (of_scores[s].lanes[i] - mean.lanes[i]);
                for (int t = 0; t < TOKENS; t++) sums[s * TOKENS + t] += of_scores[s].each[t];
            }
            multiply_transposed(columns, k, places, stride, of_scores);
            scale(columns, SIZE, every(SCALE));
            store_transposed(of_q, places, stride, columns);
            load(rows, q, places, stride);
            multiply(of_q + channels, of_scores, rows, SCALE, places, stride);
            load(rows, above, places, channels);
            multiply(of_q + 2 * channels, weights, rows, 1.0f, places, stride);
        }
    }
}
