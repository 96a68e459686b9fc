#!/bin/sh
# The guest of the monitor's tests: answers one line for each line on the agent's port.
b=/bin/busybox
$b mount -t proc none /proc; $b mount -t sysfs none /sys; $b mount -t devtmpfs none /dev
# In whatever order they depend on each other.
for pass in 1 2 3 4; do for m in /m/*.ko; do [ -e "$m" ] && $b insmod "$m" 2>/dev/null; done; done
port=
while [ -z "$port" ]; do
  for p in /sys/class/virtio-ports/*; do
    [ "$($b cat "$p/name" 2>/dev/null)" = org.cowslip.agent ] && port=/dev/${p##*/}
  done
  [ -n "$port" ] || $b usleep 10000
done
while [ ! -e "$port" ]; do $b usleep 10000; done
exec 3<>"$port"
echo "the test guest is up"
count=0
while :; do
  while read -r verb a c <&3; do
    case $verb in
      echo) echo "echo $a" >&3 ;;
      count) count=$((count + 1)); echo "count $count" >&3 ;;
      write) printf '%s' "$c" | $b dd of=/dev/vda bs=512 seek="$a" conv=notrunc,sync 2>/dev/null
             $b sync; echo "written" >&3 ;;
      read) echo "read $($b dd if=/dev/vda bs=512 skip="$a" count=1 2>/dev/null | $b tr -d '\000')" >&3 ;;
      cpus) echo "cpus $($b nproc)" >&3 ;;
      memory) $b dd if=/dev/urandom of=/blob bs=1M count="$a" 2>/dev/null; echo "memory" >&3 ;;
      console) $b yes "$a" | $b head -c "$c" >/dev/console; echo "console" >&3 ;;
      off) $b poweroff -f ;;
      panic) echo c >/proc/sysrq-trigger ;;
    esac
  done
  # No engine is connected; the port reads as ended.
  $b usleep 5000
done
