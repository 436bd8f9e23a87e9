# Plots attach.dat, which the benchmark `attach` writes: gnuplot -e 'results="DIR"' attach.gnuplot
set terminal svg size 1200,440 font "sans-serif,13" background "white"
set output results."/attach.svg"
data = results."/attach.dat"
programs = "'floor.c' 'macvtap' 'macvtap with a device plugin' \"Debian's macvlan\""
colours = "#888888 #0060ad #00a0d0 #d08000"
set logscale x
set xrange [0.8:1250]
set yrange [0:*]
set xtics (1, 10, 100, 1000)
set grid ytics lc rgb "#dddddd"
set xlabel "existing attachments"
set key outside bottom center horizontal
set multiplot layout 1,3
do for [panel in "'ADD, exec to exit' 'ADD, processor time' 'CHECK, processor time'"] {
	verb = word(panel, 1)[1:strlen(word(panel, 1)) - 1]
	column = panel[strlen(panel) - 3:] eq "exit" ? 2 : 5
	first = verb eq "ADD" ? 1 : 2
	set title panel
	set ylabel "ms, median"
	plot for [n = first:4] data index verb." ".word(programs, n) using 1:column \
		with linespoints lw 2 pt 7 ps 0.6 lc rgb word(colours, n) title word(programs, n)
}
unset multiplot
