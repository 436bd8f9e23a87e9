# Plots attach.dat, which the benchmark `attach` writes: gnuplot -e 'results="DIR"' attach.gnuplot
set terminal svg size 960,400 font "sans-serif,13" background "white"
set output results."/attach.svg"
set logscale x
set xrange [0.8:1250]
set yrange [0:*]
set xtics (1, 10, 100, 1000)
set grid ytics lc rgb "#dddddd"
set xlabel "attachments that exist on the lower device"
set ylabel "ms from exec to exit, median"
set key top left
data = results."/attach.dat"
set multiplot layout 1,2
do for [verb in "ADD CHECK"] {
	set title verb
	programs = verb eq "ADD" ? "'floor.c' 'macvtap' 'macvtap, device plugin asked' \"Debian's macvlan\"" : "'macvtap' \"Debian's macvlan\""
	plot for [program in programs] data index verb." ".program using 1:2 with linespoints lw 2 pt 7 ps 0.6 title program
}
unset multiplot
