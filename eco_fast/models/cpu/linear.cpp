/* The gradients of a linear layer's weight and bias on a CPU: linear.py has the contract.

   oneDNN walks through all tokens once for every few channels. In training they come from memory, not from a cache, and
   that takes three times the arithmetic's time; here each is read once. */

#include <cstring>
#include <vector>

#define LANES 16
#define BLOCK 64 /* tokens at a time: they stay in the core's caches */
#define DOWN 6   /* channels whose sums fit into the registers */

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef union { Lanes lanes[4]; float each[4 * LANES]; } Quad;

/* sums += upstream' inputs, for some channels of upstream and a quad of the inputs' */
template <int COUNT>
static void add_products(Quad *sums, const float *upstream, const Quad *inputs, long tokens, long outputs, long quads)
{
    Quad sum[COUNT] = {};
    for (long t = 0; t < tokens; t++)
        for (int i = 0; i < COUNT; i++)
            for (int j = 0; j < 4; j++) sum[i].lanes[j] += upstream[t * outputs + i] * inputs[t * quads].lanes[j];
    for (int i = 0; i < COUNT; i++)
        for (int j = 0; j < 4; j++) sums[i * quads].lanes[j] += sum[i].lanes[j];
}

/* upstream [tokens][outputs], x [tokens][inputs], result [parts][outputs][quads of inputs + 1], to be added up */
extern "C" void weight_gradient(const float *upstream, const float *x, Quad *result, long tokens, long outputs,
                                long inputs, long parts, long threads)
{
    long quads = inputs / (4 * LANES) + 1;
#pragma omp parallel for num_threads(threads)
    for (long part = 0; part < parts; part++) {
        std::vector<Quad> sums(outputs * quads), rows(BLOCK * quads);
        long end = (part + 1) * tokens / parts;
        for (long first = part * tokens / parts; first < end; first += BLOCK) {
            long count = end - first < BLOCK ? end - first : BLOCK;
            for (long t = 0; t < count; t++) {
                float *row = rows[t * quads].each;
                memcpy(row, x + (first + t) * inputs, inputs * sizeof(float));
                row[inputs] = 1.0f; /* whose sums are the bias's gradient */
            }
            for (long quad = 0; quad < quads; quad++) {
                const float *from = upstream + first * outputs;
                long o = 0;
                for (; o + DOWN <= outputs; o += DOWN)
                    add_products<DOWN>(&sums[o * quads + quad], from + o, &rows[quad], count, outputs, quads);
                for (; o < outputs; o++)
                    add_products<1>(&sums[o * quads + quad], from + o, &rows[quad], count, outputs, quads);
            }
        }
        memcpy(result + part * outputs * quads, sums.data(), sums.size() * sizeof(Quad));
    }
}
