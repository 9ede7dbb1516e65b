/* Attention within windows on a CPU: window_attention.py has the contract.

   Compiled for a WINDOW's side and the channels of a head, SIZE. One window of one head at a time: all that it needs
   stays in the core's first cache, and a row of scores in its registers. Tokens are read where the image has them, and
   written there: nothing is rolled, cut or joined. */

#include <cmath>
#include <cstddef>

using std::size_t;

#define TOKENS (WINDOW * WINDOW)
#define LANES 16
#define WIDTH ((TOKENS + LANES - 1) / LANES) /* vectors in a row of scores */
#define DEPTH ((SIZE + LANES - 1) / LANES)   /* vectors in a row of channels */
#define ROWS ((TOKENS + 7) / 8 * 8)          /* tokens, rounded up to the rows of a product's block */
#define CHANNELS (SIZE % 5 ? SIZE % 4 ? SIZE % 3 ? 1 : 3 : 4 : 5) /* whose sums fit into the registers */
#define SCALE (1 / sqrtf(SIZE))

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef float Half __attribute__((vector_size(2 * LANES)));
typedef float Quarter __attribute__((vector_size(LANES)));
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

/* Lanes are combined by halves: a chain of sixteen additions, each waiting for the one before, takes four times as long. */
static inline float total(const Lanes *x, int count)
{
    Lanes sum = x[0];
    for (int i = 1; i < count; i++) sum += x[i];
    union { Lanes whole; Half halves[2]; } a = {sum};
    union { Half whole; Quarter halves[2]; } b = {a.halves[0] + a.halves[1]};
    Quarter q = b.halves[0] + b.halves[1];
    return (q[0] + q[1]) + (q[2] + q[3]);
}

static inline float largest(const Lanes *x, int count)
{
    Lanes most = x[0];
    for (int i = 1; i < count; i++) most = x[i] > most ? x[i] : most;
    union { Lanes whole; Half halves[2]; } a = {most};
    union { Half whole; Quarter halves[2]; } b = {a.halves[0] > a.halves[1] ? a.halves[0] : a.halves[1]};
    Quarter q = b.halves[0] > b.halves[1] ? b.halves[0] : b.halves[1];
    float first = q[0] > q[1] ? q[0] : q[1], second = q[2] > q[3] ? q[2] : q[3];
    return first > second ? first : second;
}

/* Where the tokens of a window are in a batch of images, in tokens; the windows' grid begins at (shift, shift) */
static void locate(size_t *places, long number, long height, long width, long shift)
{
    long across = width / WINDOW, of_image = height / WINDOW * across;
    long image = number / of_image, top = number % of_image / across * WINDOW, left = number % across * WINDOW;
    for (int t = 0; t < TOKENS; t++) {
        long row = (top + t / WINDOW + shift) % height, column = (left + t % WINDOW + shift) % width;
        places[t] = (image * height + row) * width + column;
    }
}

/* The channels of one head, of a window's tokens, times `factor`; zero where there are none. */
static void load(Token *rows, const float *from, const size_t *places, size_t stride, float factor)
{
    for (int t = 0; t < ROWS; t++)
        for (int c = 0; c < DEPTH * LANES; c++)
            rows[t].each[c] = t < TOKENS && c < SIZE ? factor * from[places[t] * stride + c] : 0.0f;
}

static void load_transposed(Row *columns, const float *from, const size_t *places, size_t stride)
{
    for (int t = 0; t < WIDTH * LANES; t++)
        for (int c = 0; c < SIZE; c++) columns[c].each[t] = t < TOKENS ? from[places[t] * stride + c] : 0.0f;
}

static void store(float *to, const size_t *places, size_t stride, const Token *rows, float factor)
{
    for (int t = 0; t < TOKENS; t++)
        for (int c = 0; c < SIZE; c++) to[places[t] * stride + c] = factor * rows[t].each[c];
}

static void store_transposed(float *to, const size_t *places, size_t stride, const Row *columns)
{
    for (int t = 0; t < TOKENS; t++)
        for (int c = 0; c < SIZE; c++) to[places[t] * stride + c] = columns[c].each[t];
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

/* result = x rows: eight results at a time, so that the sums do not wait for each other */
static inline void multiply(Token *result, const Row *x, const Token *rows)
{
    for (int first = 0; first < ROWS; first += 8) {
        Token sum[8] = {};
        for (int t = 0; t < TOKENS; t++)
            for (int i = 0; i < 8; i++)
                for (int c = 0; c < DEPTH; c++) sum[i].lanes[c] += x[first + i].each[t] * rows[t].lanes[c];
        for (int i = 0; i < 8; i++) result[first + i] = sum[i];
    }
}

/* result = rows' x, a row for each channel: CHANNELS of them at a time, likewise */
static inline void multiply_transposed(Row *result, const Token *rows, const Row *x)
{
    for (int first = 0; first < SIZE; first += CHANNELS) {
        Row sum[CHANNELS] = {};
        for (int t = 0; t < TOKENS; t++)
            for (int c = 0; c < CHANNELS; c++)
                for (int i = 0; i < WIDTH; i++) sum[c].lanes[i] += rows[t].each[first + c] * x[t].lanes[i];
        for (int c = 0; c < CHANNELS; c++) result[first + c] = sum[c];
    }
}

/* qkv [images][height][width][3][heads][SIZE], bias [heads][TOKENS][TOKENS], mask [windows of an image][TOKENS][TOKENS]
   or none, out [images][height][width][heads][SIZE] */
extern "C" void attend(const float *qkv, const float *bias, const float *mask, float *out, long images, long height,
                       long width, long shift, long heads, long parts, long threads)
{
    size_t channels = heads * SIZE, square = TOKENS * TOKENS;
    long of_image = height / WINDOW * (width / WINDOW);
#pragma omp parallel for collapse(2) num_threads(threads)
    for (long w = 0; w < images * of_image; w++)
        for (long h = 0; h < heads; h++) {
            const float *from = qkv + h * SIZE;
            size_t places[TOKENS];
            Token q[ROWS], v[ROWS], attended[ROWS];
            Row k[SIZE], weights[ROWS] = {};
            locate(places, w, height, width, shift);
            load(q, from, places, 3 * channels, SCALE);
            load_transposed(k, from + channels, places, 3 * channels);
            load(v, from + 2 * channels, places, 3 * channels, 1.0f);
            find_weights(weights, q, k, bias + h * square, mask ? mask + w % of_image * square : NULL);
            multiply(attended, weights, v);
            store(out + h * SIZE, places, channels, attended, 1.0f);
        }
}

/* upstream as out; of_qkv as qkv; of_bias [parts][heads][TOKENS][TOKENS], to be added up */
extern "C" void attend_backward(const float *upstream, const float *qkv, const float *bias, const float *mask,
                                float *of_qkv, float *of_bias, long images, long height, long width, long shift,
                                long heads, long parts, long threads)
{
    size_t channels = heads * SIZE, square = TOKENS * TOKENS;
    long of_image = height / WINDOW * (width / WINDOW), windows = images * of_image;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (long part = 0; part < parts; part++)
        for (long h = 0; h < heads; h++) {
            float *sum = of_bias + (part * heads + h) * square;
            for (size_t i = 0; i < square; i++) sum[i] = 0.0f;
            for (long w = part * windows / parts; w < (part + 1) * windows / parts; w++) {
                const float *from = qkv + h * SIZE;
                float *to = of_qkv + h * SIZE;
                size_t places[TOKENS];
                Token q[ROWS], k_rows[ROWS], above[ROWS], result[ROWS];
                Row k[SIZE], v[SIZE], weights[ROWS] = {}, of_scores[ROWS] = {}, columns[SIZE];
                locate(places, w, height, width, shift);
                load(q, from, places, 3 * channels, SCALE);
                load(k_rows, from + channels, places, 3 * channels, 1.0f);
                load(above, upstream + h * SIZE, places, channels, 1.0f);
                load_transposed(k, from + channels, places, 3 * channels);
                load_transposed(v, from + 2 * channels, places, 3 * channels);
                find_weights(weights, q, k, bias + h * square, mask ? mask + w % of_image * square : NULL);
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
                multiply(result, of_scores, k_rows);
                store(to, places, 3 * channels, result, SCALE);
                multiply_transposed(columns, q, of_scores);
                store_transposed(to + channels, places, 3 * channels, columns);
                multiply_transposed(columns, above, weights);
                store_transposed(to + 2 * channels, places, 3 * channels, columns);
            }
        }
}
