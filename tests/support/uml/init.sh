#!/bin/sh
# The first process of a guest: mounts what every scenario needs, runs the job, ends the guest.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/run TMPDIR=/run LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
stty -opost  # a line is one write, so that the kernel's own words cannot split it

# The guest's modules are not where the kernel would look for them.
mkdir -p /run/modules/lib
ln -s /usr/lib/uml/modules /run/modules/lib/modules
printf '#!/bin/sh\nexec modprobe -d /run/modules "$@"\n' > /run/modules/modprobe
chmod 755 /run/modules/modprobe
echo /run/modules/modprobe > /proc/sys/kernel/modprobe

ip link set lo up
sh "$JOB"
printf '\036@end %s\n' "$?"
echo o > /proc/sysrq-trigger
sleep 60
