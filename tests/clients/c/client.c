/* The C client (libnats) as a component: argv is URL PREFIX basic|refused|steady [MAX].
 *
 * Prints one JSON object a line; exit code 0 only if all was as expected. Its own
 * reconnect is off, unless the URL says so. In mode steady a line on stdin stops it. */

#include <nats/nats.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"

static bool failed;
static atomic_int disconnects, errors;
static atomic_bool closing;

/* One line of the transcript; what is expected is text as well. */
static void step(const char *name, const char *expected, const char *format, ...)
{
    char got[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(got, sizeof got, format, args);
    va_end(args);
    bool ok = strcmp(got, expected) == 0;
    failed = failed || !ok;
    printf("{\"event\":\"step\",\"name\":\"%s\",\"got\":\"%s\",\"ok\":%s}\n", name, got, ok ? "true" : "false");
    fflush(stdout);
}

static void must(natsStatus status, const char *what)
{
    if (status == NATS_OK)
        return;
    fprintf(stderr, "%s: %s\n", what, natsStatus_GetText(status));
    exit(1);
}

static void on_disconnect(natsConnection *nc, void *closure)
{
    (void)nc, (void)closure;
    if (!closing)
        disconnects++;
}

static void on_error(natsConnection *nc, natsSubscription *sub, natsStatus status, void *closure)
{
    (void)nc, (void)sub, (void)closure;
    fprintf(stderr, "error: %s\n", natsStatus_GetText(status));
    errors++;
}

static natsStatus dial(natsConnection **nc, const char *url, bool no_echo)
{
    natsOptions *options = NULL;
    must(natsOptions_Create(&options), "options");
    /* A URL may name the authorities of a listener's certificate behind a `#`. */
    const char *ca = strchr(url, '#');
    char address[256];
    snprintf(address, sizeof address, "%.*s", ca ? (int)(ca - url) : (int)strlen(url), url);
    natsOptions_SetURL(options, address);
    bool again = ca != NULL && strncmp(ca, "#again=", 7) == 0;
    bool is_signed = again || (ca != NULL && strncmp(ca, "#creds=", 7) == 0);
    if (is_signed) {
        must(natsOptions_SetUserCredentialsFromFiles(options, ca + 7, NULL), "credentials");
    } else if (ca != NULL) {
        natsOptions_SetSecure(options, true);
        must(natsOptions_LoadCATrustedCertificates(options, ca + 1), "authorities");
    }
    natsOptions_SetAllowReconnect(options, again);
    natsOptions_SetReconnectWait(options, 100);
    natsOptions_SetTimeout(options, PATIENCE);
    natsOptions_SetNoEcho(options, no_echo);
    natsOptions_SetDisconnectedCB(options, on_disconnect, NULL);
    natsOptions_SetErrorHandler(options, on_error, NULL);
    natsStatus status = natsConnection_Connect(nc, options);
    /* libnats leaves out a signature that begins with a zero byte: one in 256, also directly. */
    for (int i = 0; i < 3 && is_signed && status == NATS_CONNECTION_AUTH_FAILED; i++)
        status = natsConnection_Connect(nc, options);
    natsOptions_Destroy(options);
    return status;
}

static natsSubscription *listen_to(natsConnection *nc, const char *subject)
{
    natsSubscription *sub = NULL;
    must(natsConnection_SubscribeSync(&sub, nc, subject), subject);
    return sub;
}

/* Up to `count` messages in one text, with a space behind each: their data or, if `skip` isn't
 * 0, their subjects from that byte on. */
static void collect(natsSubscription *sub, int count, size_t skip, char *text, size_t size)
{
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < count; i++) {
        natsMsg *msg = NULL;
        if (natsSubscription_NextMsg(&msg, sub, PATIENCE) != NATS_OK)
            return;
        const char *part = skip ? natsMsg_GetSubject(msg) + skip : natsMsg_GetData(msg);
        used += (size_t)snprintf(text + used, size - used, "%s ", part ? part : "");
        natsMsg_Destroy(msg);
    }
}

static const char *name(const char *prefix, const char *end)
{
    static char names[8][256];
    static int next;
    next = (next + 1) % 8;
    snprintf(names[next], sizeof names[next], "%s.%s", prefix, end);
    return names[next];
}

static void publish_numbers(natsConnection *nc, const char *subject, int count)
{
    char number[16];
    for (int i = 0; i < count; i++) {
        snprintf(number, sizeof number, "%d", i);
        must(natsConnection_PublishString(nc, subject, number), "publish");
    }
}

static void delivery(natsConnection *nc, const char *prefix)
{
    char text[4096];
    size_t skip = strlen(prefix) + 1;
    natsSubscription *plain = listen_to(nc, name(prefix, "plain"));
    publish_numbers(nc, name(prefix, "plain"), 5);
    collect(plain, 5, 0, text, sizeof text);
    step("plain", "0 1 2 3 4 ", "%s", text);
    natsSubscription_Destroy(plain);

    natsSubscription *star = listen_to(nc, name(prefix, "w.*.x")), *tail = listen_to(nc, name(prefix, "w.>"));
    must(natsConnection_PublishString(nc, name(prefix, "w.a.x"), ""), "publish");
    must(natsConnection_PublishString(nc, name(prefix, "w.b.x"), ""), "publish");
    must(natsConnection_PublishString(nc, name(prefix, "w.a.y.z"), ""), "publish");
    collect(star, 2, skip, text, sizeof text);
    step("wildcard star", "w.a.x w.b.x ", "%s", text);
    collect(tail, 3, skip, text, sizeof text);
    step("wildcard tail", "w.a.x w.b.x w.a.y.z ", "%s", text);
    natsSubscription_Destroy(star);
    natsSubscription_Destroy(tail);

    natsSubscription *members[3];
    for (int i = 0; i < 3; i++)
        must(natsConnection_QueueSubscribeSync(&members[i], nc, name(prefix, "queue"), "workers"), "queue");
    publish_numbers(nc, name(prefix, "queue"), 30);
    must(natsConnection_FlushTimeout(nc, PATIENCE), "flush");
    uint64_t total = 0;
    for (int i = 0; i < 3; i++) {
        uint64_t queued = 0;
        natsSubscription_QueuedMsgs(members[i], &queued);
        total += queued;
        natsSubscription_Destroy(members[i]);
    }
    step("queue group", "30", "%d", (int)total);
}

static void answer(natsConnection *nc, natsSubscription *sub, natsMsg *msg, void *closure)
{
    (void)sub, (void)closure;
    char text[256];
    snprintf(text, sizeof text, "re %s", natsMsg_GetData(msg));
    natsConnection_PublishString(nc, natsMsg_GetReply(msg), text);
    natsMsg_Destroy(msg);
}

static void requests(natsConnection *nc, const char *prefix)
{
    natsSubscription *service = NULL;
    must(natsConnection_Subscribe(&service, nc, name(prefix, "service"), answer, NULL), "service");
    natsMsg *reply = NULL;
    must(natsConnection_RequestString(&reply, nc, name(prefix, "service"), "question", PATIENCE), "request");
    step("request", "re question", "%s", natsMsg_GetData(reply));
    natsMsg_Destroy(reply);
    natsSubscription_Destroy(service);
    natsStatus status = natsConnection_RequestString(&reply, nc, name(prefix, "nobody"), "", PATIENCE);
    step("no responders", natsStatus_GetText(NATS_NO_RESPONDERS), "%s", natsStatus_GetText(status));

    natsSubscription *sub = listen_to(nc, name(prefix, "headers"));
    natsMsg *msg = NULL;
    must(natsMsg_Create(&msg, name(prefix, "headers"), NULL, "body", 4), "message");
    natsMsgHeader_Set(msg, "one", "1");
    natsMsgHeader_Add(msg, "many", "a");
    natsMsgHeader_Add(msg, "many", "b: c");
    must(natsConnection_PublishMsg(nc, msg), "publish");
    natsMsg_Destroy(msg);
    must(natsSubscription_NextMsg(&msg, sub, PATIENCE), "headers");
    const char *one = "", **many = NULL;
    int count = 0;
    natsMsgHeader_Get(msg, "one", &one);
    must(natsMsgHeader_Values(msg, "many", &many, &count), "values");
    step("headers", "1 2 a b: c body", "%s %d %s %s %s", one, count, many[0], count > 1 ? many[1] : "", natsMsg_GetData(msg));
    free((void *)many);
    natsMsg_Destroy(msg);
    natsSubscription_Destroy(sub);
}

static bool comes_back(natsConnection *nc, natsSubscription *sub, const char *subject, const char *data, int size)
{
    natsMsg *msg = NULL;
    must(natsConnection_Publish(nc, subject, data, size), "publish");
    if (natsSubscription_NextMsg(&msg, sub, PATIENCE) != NATS_OK)
        return false;
    bool same = natsMsg_GetDataLength(msg) == size && memcmp(natsMsg_GetData(msg), data, (size_t)size) == 0;
    natsMsg_Destroy(msg);
    return same;
}

static void limits(natsConnection *nc, const char *prefix)
{
    natsMsg *msg = NULL;
    natsSubscription *few = listen_to(nc, name(prefix, "max"));
    must(natsSubscription_AutoUnsubscribe(few, 3), "max");
    publish_numbers(nc, name(prefix, "max"), 5);
    must(natsConnection_FlushTimeout(nc, PATIENCE), "flush");
    int got = 0;
    while (natsSubscription_NextMsg(&msg, few, 100) == NATS_OK) {
        natsMsg_Destroy(msg);
        got++;
    }
    step("unsubscribe with max", "3", "%d", got);
    natsSubscription_Destroy(few);

    natsSubscription *gone = listen_to(nc, name(prefix, "gone"));
    bool heard = comes_back(nc, gone, name(prefix, "gone"), "heard", 5);
    must(natsSubscription_Unsubscribe(gone), "unsubscribe");
    must(natsConnection_PublishString(nc, name(prefix, "gone"), "unheard"), "publish");
    must(natsConnection_FlushTimeout(nc, PATIENCE), "flush");
    bool unheard = natsSubscription_NextMsg(&msg, gone, 100) != NATS_OK;
    step("unsubscribe", "1 1", "%d %d", heard, unheard);
    natsSubscription_Destroy(gone);

    char all[256];
    for (int i = 0; i < 256; i++)
        all[i] = (char)i;
    const char *protocol = "PUB a 1\r\nx\r\nMSG a 1 1\r\nPING\r\n-ERR 'x'\r\n", *subject = name(prefix, "binary");
    natsSubscription *sub = listen_to(nc, subject);
    bool plain = comes_back(nc, sub, subject, all, 256), text = comes_back(nc, sub, subject, protocol, (int)strlen(protocol));
    step("binary", "1 1 1 1", "%d %d %d %d", plain, text, comes_back(nc, sub, subject, "", 0), comes_back(nc, sub, subject, "\r\n", 2));
    int size = (int)natsConnection_GetMaxPayload(nc);
    char *big = malloc((size_t)size + 1);
    for (int i = 0; i <= size; i++)
        big[i] = (char)(i * 7 % 251);
    step("largest payload", "1048576 1", "%d %d", size, comes_back(nc, sub, subject, big, size));
    natsStatus status = natsConnection_Publish(nc, subject, big, size + 1);
    step("too large", natsStatus_GetText(NATS_MAX_PAYLOAD), "%s", natsStatus_GetText(status));
    free(big);
    natsSubscription_Destroy(sub);
}

static void neighbours(const char *url, natsConnection *nc, const char *prefix)
{
    char text[4096];
    natsConnection *other = NULL, *deaf = NULL;
    must(dial(&other, url, false), "second connection");
    must(dial(&deaf, url, true), "connection without echo");
    natsSubscription *heard = listen_to(other, name(prefix, "n")), *own = listen_to(deaf, name(prefix, "n"));
    must(natsConnection_FlushTimeout(other, PATIENCE), "flush");
    publish_numbers(deaf, name(prefix, "n"), 5);
    collect(heard, 5, 0, text, sizeof text);
    step("other connection", "0 1 2 3 4 ", "%s", text);
    must(natsConnection_FlushTimeout(deaf, PATIENCE), "flush");
    uint64_t queued = 0;
    natsSubscription_QueuedMsgs(own, &queued);
    step("no echo", "0", "%d", (int)queued);

    natsSubscription *drained = listen_to(other, name(prefix, "drain"));
    must(natsConnection_FlushTimeout(other, PATIENCE), "flush");
    publish_numbers(nc, name(prefix, "drain"), 10);
    must(natsConnection_FlushTimeout(nc, PATIENCE), "flush");
    must(natsSubscription_Drain(drained), "drain");
    collect(drained, 10, 0, text, sizeof text);
    step("drain", "0 1 2 3 4 5 6 7 8 9 ", "%s", text);
    step("still connected", "0 0", "%d %d", (int)disconnects, (int)errors);
    closing = true;
    natsSubscription_Destroy(heard);
    natsSubscription_Destroy(own);
    natsSubscription_Destroy(drained);
    natsConnection_Destroy(deaf);
    natsConnection_Destroy(other);
}

static void basic(const char *url, const char *prefix)
{
    natsConnection *nc = NULL;
    must(dial(&nc, url, false), "connect");
    step("connect", "1", "%d", natsConnection_HasHeaderSupport(nc) == NATS_OK);
    delivery(nc, prefix);
    requests(nc, prefix);
    limits(nc, prefix);
    neighbours(url, nc, prefix);
    int64_t rtt = -1;
    step("round trip", "1", "%d", natsConnection_GetRTT(nc, &rtt) == NATS_OK);
    natsConnection_Destroy(nc);
}

static void refused(const char *url)
{
    natsConnection *nc = NULL;
    closing = true;
    natsStatus status = dial(&nc, url, false);
    step("refused", natsStatus_GetText(NATS_CONNECTION_AUTH_FAILED), "%s", natsStatus_GetText(status));
}

static void steady(const char *url, const char *prefix, uint32_t most)
{
    natsConnection *a = NULL, *b = NULL;
    must(dial(&a, url, false), "first connection");
    must(dial(&b, url, false), "second connection");
    struct report report = steady_run(a, b, name(prefix, "steady"), most, &errors);
    closing = true;
    natsConnection_Destroy(a);
    natsConnection_Destroy(b);
    printf("{\"event\":\"report\",\"published\":%u,\"received\":%u,\"missing\":%u,\"duplicates\":%u,"
           "\"out_of_order\":%u,\"disconnects\":%d,\"errors\":%d}\n",
           report.published, report.received, report.published - report.received, report.duplicates,
           report.out_of_order, (int)disconnects, (int)errors);
    failed = disconnects || errors || report.duplicates || report.out_of_order;
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    if (strcmp(argv[3], "basic") == 0)
        basic(argv[1], argv[2]);
    else if (strcmp(argv[3], "refused") == 0)
        refused(argv[1]);
    else
        steady(argv[1], argv[2], argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 0);
    fflush(stdout);
    return failed ? 1 : 0;
}
