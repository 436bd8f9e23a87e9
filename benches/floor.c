/*
 * The floor under CNI ADD and DEL: a static program that sends the one message which makes
 * a macvtap in another network namespace, and gives its tap to an owner, or the one that
 * deletes it. It checks nothing and reads nothing back, so no plugin can be faster.
 *
 * floor ADD <netns path> <lower device> <interface> <tap number>
 * floor DEL <netns path> <tap number>
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static struct {
	struct nlmsghdr header;
	struct ifinfomsg link;
	char attributes[512];
} request;

static struct rtattr *end(void)
{
	return (void *)((char *)&request + NLMSG_ALIGN(request.header.nlmsg_len));
}

static struct rtattr *add(unsigned short type, const void *data, size_t length)
{
	struct rtattr *attribute = end();
	attribute->rta_type = type;
	attribute->rta_len = RTA_LENGTH(length);
	if (length)
		memcpy(RTA_DATA(attribute), data, length);
	request.header.nlmsg_len =
		NLMSG_ALIGN(request.header.nlmsg_len) + RTA_ALIGN(attribute->rta_len);
	return attribute;
}

static void close_nest(struct rtattr *attribute)
{
	attribute->rta_len = (char *)end() - (char *)attribute;
}

static int ask(void)
{
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
		char rest[1024];
	} answer;
	int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	return send(netlink, &request, request.header.nlmsg_len, 0) < 0 ||
	       recv(netlink, &answer, sizeof(answer), 0) < 0 || answer.error.error;
}

static int delete(int netns, char *number)
{
	request.header.nlmsg_type = RTM_DELLINK;
	request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	request.link.ifi_index = atoi(number);
	return setns(netns, CLONE_NEWNET) || ask();
}

static int create(int netns, char *lower_device, char *interface, char *number)
{
	unsigned int lower = if_nametoindex(lower_device);
	unsigned int length = 1000, mode = MACVLAN_MODE_BRIDGE;

	request.header.nlmsg_type = RTM_NEWLINK;
	request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
	request.link.ifi_index = atoi(number);
	request.link.ifi_flags = request.link.ifi_change = IFF_UP;
	add(IFLA_IFNAME, interface, strlen(interface) + 1);
	add(IFLA_LINK, &lower, sizeof(lower));
	add(IFLA_TXQLEN, &length, sizeof(length));
	add(IFLA_NET_NS_FD, &netns, sizeof(netns));
	struct rtattr *info = add(IFLA_LINKINFO, NULL, 0);
	add(IFLA_INFO_KIND, "macvtap", sizeof("macvtap"));
	struct rtattr *data = add(IFLA_INFO_DATA, NULL, 0);
	add(IFLA_MACVLAN_MODE, &mode, sizeof(mode));
	close_nest(data);
	close_nest(info);
	if (ask())
		return 1;
	char tap[32];
	snprintf(tap, sizeof(tap), "/dev/tap%s", number);
	return chown(tap, 107, 107) || chmod(tap, 0600);
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	int netns = open(argv[2], O_RDONLY | O_CLOEXEC);
	request.header.nlmsg_len = NLMSG_LENGTH(sizeof(request.link));
	if (argc == 4)
		return delete(netns, argv[3]);
	return create(netns, argv[3], argv[4], argv[5]);
}
