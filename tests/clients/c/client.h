/* What the two halves of the C component share. */

#ifndef CLIENT_H
#define CLIENT_H

#include <nats/nats.h>
#include <stdatomic.h>
#include <stdint.h>

/* Milliseconds that anything may take. */
#define PATIENCE 5000

struct report {
    uint32_t published, received, duplicates, out_of_order;
};

/* Publishes 1, 2, 3 … on `a`, receives on `a` and `b`, until a line comes on stdin. */
struct report steady_run(natsConnection *a, natsConnection *b, const char *subject, uint32_t most, atomic_int *errors);

#endif
