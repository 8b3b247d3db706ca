/* Mode steady: a numbered message every 2 ms, received on two connections. */

#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "client.h"

#define PERIOD_NS 2000000LL
#define PROGRESS_NS 100000000LL

struct receiver {
    pthread_mutex_t lock;
    bool *seen;
    uint32_t most, last, duplicates, out_of_order;
};

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void on_message(natsConnection *nc, natsSubscription *sub, natsMsg *msg, void *closure)
{
    (void)nc, (void)sub;
    struct receiver *r = closure;
    uint32_t number = (uint32_t)strtoul(natsMsg_GetData(msg), NULL, 10);
    pthread_mutex_lock(&r->lock);
    if (number <= r->most && r->seen[number])
        r->duplicates++;
    else if (number < r->last)
        r->out_of_order++;
    if (number <= r->most)
        r->seen[number] = true;
    if (number > r->last)
        r->last = number;
    pthread_mutex_unlock(&r->lock);
    natsMsg_Destroy(msg);
}

static uint32_t last_of(struct receiver *r)
{
    pthread_mutex_lock(&r->lock);
    uint32_t last = r->last;
    pthread_mutex_unlock(&r->lock);
    return last;
}

static uint32_t last_of_both(struct receiver *r)
{
    uint32_t same = last_of(&r[0]), other = last_of(&r[1]);
    return same < other ? same : other;
}

static void subscribe(natsSubscription **sub, natsConnection *nc, const char *subject, struct receiver *r, uint32_t most)
{
    pthread_mutex_init(&r->lock, NULL);
    r->most = most;
    r->seen = calloc((size_t)most + 1, sizeof *r->seen);
    if (r->seen == NULL || natsConnection_Subscribe(sub, nc, subject, on_message, r) != NATS_OK ||
        natsConnection_FlushTimeout(nc, PATIENCE) != NATS_OK) {
        fprintf(stderr, "no subscription\n");
        exit(1);
    }
}

/* Sleeps until the next message is due; true when stdin says stop. */
static bool stop_within(int64_t ns)
{
    struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN};
    struct timespec left = {.tv_nsec = ns > 0 ? ns : 0};
    nanosleep(&left, NULL);
    return poll(&in, 1, 0) != 0;
}

static uint32_t publish_until_stop(natsConnection *a, const char *subject, uint32_t most, struct receiver *r, atomic_int *errors)
{
    uint32_t published = 0;
    int64_t due = now_ns(), progress = due, now = due;
    char text[16];
    while (published < most) {
        snprintf(text, sizeof text, "%u", published + 1);
        if (natsConnection_PublishString(a, subject, text) != NATS_OK) {
            (*errors)++;
            break;
        }
        published++;
        now = now_ns();
        if (now >= progress) {
            printf("{\"event\":\"progress\",\"published\":%u,\"received\":%u}\n", published, last_of_both(r));
            fflush(stdout);
            progress = now + PROGRESS_NS;
        }
        due = due + PERIOD_NS > now - PROGRESS_NS ? due + PERIOD_NS : now - PROGRESS_NS;
        if (stop_within(due - now))
            break;
    }
    return published;
}

struct report steady_run(natsConnection *a, natsConnection *b, const char *subject, uint32_t most, atomic_int *errors)
{
    static struct receiver r[2];
    natsSubscription *subs[2] = {NULL, NULL};
    subscribe(&subs[0], a, subject, &r[0], most);
    subscribe(&subs[1], b, subject, &r[1], most);
    struct report report = {.published = publish_until_stop(a, subject, most, r, errors)};
    if (natsConnection_FlushTimeout(a, PATIENCE) != NATS_OK)
        (*errors)++;
    if (natsConnection_FlushTimeout(b, PATIENCE) != NATS_OK)
        (*errors)++;
    for (int i = 0; i < 200 && last_of_both(r) < report.published; i++)
        nats_Sleep(10);
    for (uint32_t i = 1; i <= report.published; i++)
        report.received += r[0].seen[i] && r[1].seen[i];
    report.duplicates = r[0].duplicates + r[1].duplicates;
    report.out_of_order = r[0].out_of_order + r[1].out_of_order;
    natsSubscription_Destroy(subs[0]);
    natsSubscription_Destroy(subs[1]);
    return report;
}
