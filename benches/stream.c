/*
 * One TCP connection of a guest to a program outside: sends zeros for some seconds, or receives
 * until the other end closes, and prints how many bytes came.
 *
 * stream send <address> <seconds>
 * stream receive <address>
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 16];

int main(int argc, char **argv)
{
	struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(5001)};
	int seconds = argc > 3 ? atoi(argv[3]) : 0;
	long long bytes = 0;
	ssize_t length;

	if (argc < 3 || inet_pton(AF_INET, argv[2], &peer.sin_addr) != 1)
		return 2;
	int connection = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(connection, (struct sockaddr *)&peer, sizeof(peer)))
		return 1;
	if (seconds) {
		for (time_t end = time(NULL) + seconds; time(NULL) < end;)
			if (write(connection, buffer, sizeof(buffer)) < 0)
				return 1;
	} else {
		while ((length = read(connection, buffer, sizeof(buffer))) > 0)
			bytes += length;
		printf("%lld\n", bytes);
	}
	return 0;
}
