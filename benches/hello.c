/* The floor under starting a program: a static one that prints a line. */
#include <stdio.h>

int main(void)
{
	puts("hello");
	return 0;
}
