/* The least that a single-threaded SMTP server can do: it answers each command by its first letter, finds CRLF.CRLF at
 * the end of a message, and keeps nothing. No server that parses is faster, so it is what the others are measured by.
 *
 *     cc -O2 -o limit limit.c && ./limit
 *
 * It listens on a free port of 127.0.0.1, prints the port, and ends when it is killed. Linux only (epoll). Not a mail
 * server: it believes every client.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    TAIL = 4, /* octets of an end that may lie in the read before */
    READ = 256 * 1024,
    MOST_REPLIES = 64 * 1024,
    MOST_CLIENTS = 16384,
    EVENTS = 256
};

struct client {
    char tail[TAIL]; /* the last octets of the content */
    char letter;     /* the first of a command whose end has not come; 0: none has begun */
    char in_content;
    char quits;
};

static struct client clients[MOST_CLIENTS]; /* by descriptor */
static char buffer[TAIL + READ];
static char replies[MOST_REPLIES];
static size_t replied;

static void reply(const char *line)
{
    size_t length = strlen(line);
    if (replied + length <= sizeof replies) {
        memcpy(replies + replied, line, length);
        replied += length;
    }
}

static void answer(struct client *client)
{
    switch (client->letter & ~0x20) {
    case 'D':
        client->in_content = 1;
        memcpy(client->tail, "\0\0\r\n", TAIL); /* a dot right after DATA ends it, too */
        reply("354 Go on\r\n");
        break;
    case 'Q':
        client->quits = 1;
        reply("221 Bye\r\n");
        break;
    default:
        reply("250 Fine\r\n");
    }
    client->letter = 0;
}

/* Return where the commands begin, after the content: `end` if its end has not come. `octets` has TAIL octets of room
 * before it. */
static char *skip_content(struct client *client, char *octets, char *end)
{
    char *found;

    memcpy(octets - TAIL, client->tail, TAIL);
    found = memmem(octets - TAIL, (size_t)(end - octets) + TAIL, "\r\n.\r\n", 5);
    if (!found) {
        memcpy(client->tail, end - TAIL, TAIL);
        return end;
    }
    client->in_content = 0;
    reply("250 Taken\r\n");
    return found + 5;
}

static void work_off(struct client *client, char *octets, char *end)
{
    while (octets < end && !client->quits) {
        if (client->in_content) {
            octets = skip_content(client, octets, end);
            continue;
        }
        if (!client->letter)
            client->letter = *octets;
        octets = memchr(octets, '\n', (size_t)(end - octets));
        if (!octets)
            return;
        octets++;
        answer(client);
    }
}

/* Return whether the client is still there. */
static int serve(int descriptor)
{
    struct client *client = &clients[descriptor];
    ssize_t size = read(descriptor, buffer + TAIL, READ);

    if (size <= 0)
        return 0;
    replied = 0;
    work_off(client, buffer + TAIL, buffer + TAIL + size);
    if (replied && send(descriptor, replies, replied, MSG_NOSIGNAL) != (ssize_t)replied)
        return 0;
    return !client->quits;
}

static void welcome(int listening, int epoll)
{
    static const char greeting[] = "220 limit ESMTP\r\n";
    int on = 1, descriptor;

    while ((descriptor = accept4(listening, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = descriptor};
        if (descriptor >= MOST_CLIENTS || epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event) < 0) {
            close(descriptor);
            continue;
        }
        setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        memset(&clients[descriptor], 0, sizeof clients[descriptor]);
        if (send(descriptor, greeting, sizeof greeting - 1, MSG_NOSIGNAL) < 0)
            close(descriptor);
    }
}

int main(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    struct epoll_event events[EVENTS];
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listening};

    if (listening < 0 || epoll < 0 || bind(listening, (struct sockaddr *)&address, length) < 0 ||
        listen(listening, 4096) < 0 || getsockname(listening, (struct sockaddr *)&address, &length) < 0 ||
        epoll_ctl(epoll, EPOLL_CTL_ADD, listening, &event) < 0) {
        perror("limit");
        return EXIT_FAILURE;
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int number = 0; number < ready; number++) {
            int descriptor = events[number].data.fd;
            if (descriptor == listening)
                welcome(listening, epoll);
            else if (!serve(descriptor))
                close(descriptor);
        }
    }
}
