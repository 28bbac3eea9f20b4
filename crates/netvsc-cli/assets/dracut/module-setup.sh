#!/bin/bash
# dracut: the udev rule and its helper, so that VFs are known before the root file system is there.

check() {
    [[ -n $hostonly ]] || return 0
    [[ -d /sys/bus/vmbus ]] && return 0
    return 255
}

depends() {
    echo udev-rules
}

install() {
    inst_multiple /usr/bin/netvsc
    inst /usr/lib/udev/netvsc
    inst_rules 60-netvsc.rules
}
