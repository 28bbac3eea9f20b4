# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_netvsc_global_optspecs
    string join \n h/help V/version
end

function __fish_netvsc_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_netvsc_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_netvsc_using_subcommand
    set -l cmd (__fish_netvsc_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c netvsc -n "__fish_netvsc_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_needs_command" -s V -l version -d 'Print version'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "run" -d 'Bring up the NICs, pair them with their VFs and carry traffic'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "host" -d 'Be the simulated host, for a guest in another process'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "sim" -d 'Run whole systems from seeds and check what must always hold'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "list" -d 'List the NICs of this Linux guest with their VFs'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "show" -d 'Show everything about a pair: facts with their sources, both interfaces side by side, the kernel\'s last words'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "explain" -d 'Explain in sentences why something is or is not a pair'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "check" -d 'Find what is wrong with NICs and VFs, say why, and mend it'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "resolve" -d 'Print one word about a pair, for scripts'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "lsvmbus" -d 'List all devices on VMBus'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "watch" -d 'Print what happens to the pairs of this Linux guest, as it happens'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "metrics" -d 'Tell what is known of NICs and VFs as Prometheus metrics'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "collect" -d 'Put everything that the other verbs read into one archive'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "udev" -d 'Say what a network device is, as properties for udev'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "install" -d 'Put udev rules, units, completions and man pages in place'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "uninstall" -d 'Take away what `install` put in place'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "completions" -d 'Print the completions of a shell'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "bind" -d 'Give a NIC to user space, or back to the kernel'
complete -c netvsc -n "__fish_netvsc_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l transfer -d 'Send this file over every NIC instead of generated data' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l size -d 'How much generated data to send per NIC' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l seed -d 'Repeat a run exactly: the same number gives the same events' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l host -d 'Which host to run against: auto, embedded, unix:PATH, or uio' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l pcap -d 'Write every frame to this file, as pcapng' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l timeline -d 'Draw what happened into this file, as SVG for a browser' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l vf -d 'How the NICs get their VFs' -r -f -a "own\t'Each NIC has a function of its own, with the serial number that its association names'
shared\t'One function has a port for every NIC, and all associations name its serial number'
mana\t'The same, but the associations name another number, as MANA\'s do: only the MAC addresses match'"
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l disks -d 'NVMe disks beside the VFs, each with the serial number of one of them' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l tap -d 'Attach the first NIC to this TAP interface (needs root or CAP_NET_ADMIN)' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l peer-tap -d 'Attach the far side of the virtual switch to this TAP interface' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l vf-link -d 'The interface of the kernel\'s that is a NIC\'s VF (needs root, or CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF)' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l vf-driver -d 'How the frames of that interface are reached' -r -f -a "auto\t'AF_XDP if the driver needs no copies for it, otherwise AF_PACKET'
packet\t'AF_PACKET'
packet-ring\t'AF_PACKET with a ring to receive (TPACKET_V3): fewer system calls, frames up to a millisecond later'
xdp\t'AF_XDP with copies if need be, or AF_PACKET where there is none'"
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l churn -d 'How often VFs leave or return; 0 = never' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l mtu -d 'Largest packet of the NICs in bytes, without Ethernet header' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l stats-interval -d 'Print how many frames went where, this often; 0 = never' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l duration -d 'Stop after this time instead of at Ctrl-C' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l nic -d 'The NIC to drive: interface, GUID or MAC address; may be given several times' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l queues -d 'Channels of each NIC' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l sysfs-root -d 'Look for NICs in this directory instead of the running system' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l log-level -d 'How much is logged to standard error: off, error, warn, info, debug or trace' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l log-level-from -d 'Take the level from this file, now and whenever SIGHUP comes' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l json -d 'Print events as JSON lines; the last line is the summary'
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l force -d 'Drive the NIC although a default route or this session goes through it'
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -l dry-run -d 'Show every write to sysfs and make none'
complete -c netvsc -n "__fish_netvsc_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand host" -l listen -d 'Where guests connect: the path of a Unix socket' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand host" -l nics -d 'NICs that the host offers, each with a VF' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand host" -l peer-tap -d 'Attach the wire of the first NIC to this TAP interface (needs root or CAP_NET_ADMIN)' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand host" -l vf-peer -d 'Carry the frames of the first NIC\'s VF over this interface of the kernel\'s (needs root, or CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF)' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand host" -l churn -d 'How often VFs leave or return; 0 = never' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand host" -l seed -d 'Chooses identities, MACs and delays' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand host" -l stats-interval -d 'Print how many frames went where, this often; 0 = never' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand host" -l duration -d 'Stop after this time instead of at Ctrl-C' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand host" -l log-level -d 'How much is logged to standard error: off, error, warn, info, debug or trace' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand host" -l log-level-from -d 'Take the level from this file, now and whenever SIGHUP comes' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand host" -l without-vfs -d 'Offer the NICs without VFs: all frames go on the synthetic path'
complete -c netvsc -n "__fish_netvsc_using_subcommand host" -l json -d 'Print events as JSON lines'
complete -c netvsc -n "__fish_netvsc_using_subcommand host" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and not __fish_seen_subcommand_from merge help" -l seeds -d 'Which seeds: from the first to the one before the second' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and not __fish_seen_subcommand_from merge help" -l profile -d 'What the host does, and to how many NICs' -r -f -a "smoke\t'1 to 4 NICs; VFs are ejected, torn away, and come back, links go down: a little of everything'
azure-boot\t'1 to 8 NICs that come up, with long delays and everything in any order, and nothing after that'
servicing\t'2 to 8 NICs; all VFs leave and come back with the serials dealt out anew'
flapping\t'1 to 4 NICs; links and VFs come and go far more often than is good'
hostile\t'1 to 4 NICs; switches fail, are lost, are answered twice or not at all, the host switches by itself, serials collide'
ports\t'1 to 3 ports of one function, for as many NICs, by serial and MAC or, as with MANA, by MAC alone'
scale\t'16 to 64 NICs'
hotplug\t'1 to 4 NICs that are taken away and come back; functions with strange MACs, twins of VFs, disks; a bus that repeats itself'
clocks\t'1 to 4 NICs; the machine stands still, the guest\'s clock jumps'
kexec\t'1 to 3 NICs; the guest is replaced by another one, with its VFs in place'
famine\t'1 to 4 NICs; allocations of the guest fail'
reset\t'1 to 4 NICs that the guest resets, also while they are on their VFs, alone or all of them around a pause of the machine'
storm\t'1 to 4 NICs with rings of a page or two, and a host that is slow and completes wrongly'
lossy\t'1 to 4 NICs; what the host says by itself gets lost, VFs stall, or send and do not confirm'
operators\t'1 to 4 NICs; people in the guest change MTUs and MACs, move VFs\' ports, reset NICs, and have the guest sleep'
old-hosts\t'1 to 4 NICs at hosts that speak NVSP 1 to 6.1, with MTUs of all sizes; the older half uses no VFs'"
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and not __fish_seen_subcommand_from merge help" -l jobs -d 'How many seeds run at a time; without it, one per processor' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and not __fish_seen_subcommand_from merge help" -l shard -d 'Only this share of the seeds, such as 0/4 for every fourth' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and not __fish_seen_subcommand_from merge help" -l replay -d 'One seed, with all its events' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and not __fish_seen_subcommand_from merge help" -l acts -d 'Only so many of the host\'s acts, then it behaves' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and not __fish_seen_subcommand_from merge help" -l scenario -d 'Play one scenario, with all its events' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and not __fish_seen_subcommand_from merge help" -l timeline -d 'Draw what happened into this file, as SVG for a browser' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and not __fish_seen_subcommand_from merge help" -l out -d 'Write what all seeds came to into this file, for `netvsc sim merge`' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and not __fish_seen_subcommand_from merge help" -l until-failure -d 'From the first seed on, without an end, until one fails'
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and not __fish_seen_subcommand_from merge help" -l list -d 'Name the scenarios, with the known edge cases that they come from'
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and not __fish_seen_subcommand_from merge help" -l json -d 'Print one JSON object per seed (or per event of a replay); the last line is the summary'
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and not __fish_seen_subcommand_from merge help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and not __fish_seen_subcommand_from merge help" -f -a "merge" -d 'Add up what `--out` wrote: shares of the same seeds, other seeds, other profiles'
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and not __fish_seen_subcommand_from merge help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and __fish_seen_subcommand_from merge" -l out -d 'Write the sum into this file, which can be merged again' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and __fish_seen_subcommand_from merge" -l json -d 'Print the sum as JSON'
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and __fish_seen_subcommand_from merge" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and __fish_seen_subcommand_from help" -f -a "merge" -d 'Add up what `--out` wrote: shares of the same seeds, other seeds, other profiles'
complete -c netvsc -n "__fish_netvsc_using_subcommand sim; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c netvsc -n "__fish_netvsc_using_subcommand list" -s o -l columns -d 'Which columns, in which order; +COL adds to the usual ones' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand list" -l sysfs-root -d 'Look at the guest in this directory instead of the running system' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand list" -l from -d 'Look at the guest in this archive, which `netvsc collect` made' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand list" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR is set; with CLICOLOR_FORCE set, always'
always\t'Always'
never\t'Never'"
complete -c netvsc -n "__fish_netvsc_using_subcommand list" -l brief -d 'One line per NIC, without header: NIC, state, VF (also -br)'
complete -c netvsc -n "__fish_netvsc_using_subcommand list" -s j -l json -d 'Print JSON'
complete -c netvsc -n "__fish_netvsc_using_subcommand list" -s p -l pretty -d 'Print JSON over several lines'
complete -c netvsc -n "__fish_netvsc_using_subcommand list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand show" -s o -l columns -d 'Which columns, in which order; +COL adds to the usual ones' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand show" -l sysfs-root -d 'Look at the guest in this directory instead of the running system' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand show" -l from -d 'Look at the guest in this archive, which `netvsc collect` made' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand show" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR is set; with CLICOLOR_FORCE set, always'
always\t'Always'
never\t'Never'"
complete -c netvsc -n "__fish_netvsc_using_subcommand show" -l brief -d 'One line per NIC, without header: NIC, state, VF (also -br)'
complete -c netvsc -n "__fish_netvsc_using_subcommand show" -s j -l json -d 'Print JSON'
complete -c netvsc -n "__fish_netvsc_using_subcommand show" -s p -l pretty -d 'Print JSON over several lines'
complete -c netvsc -n "__fish_netvsc_using_subcommand show" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand explain" -l sysfs-root -d 'Look at the guest in this directory instead of the running system' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand explain" -l from -d 'Look at the guest in this archive, which `netvsc collect` made' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand explain" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR is set; with CLICOLOR_FORCE set, always'
always\t'Always'
never\t'Never'"
complete -c netvsc -n "__fish_netvsc_using_subcommand explain" -s j -l json -d 'Print JSON'
complete -c netvsc -n "__fish_netvsc_using_subcommand explain" -s p -l pretty -d 'Print JSON over several lines'
complete -c netvsc -n "__fish_netvsc_using_subcommand explain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -l only -d 'Run these checks only; a family such as own stands for all of its checks' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -l exit-style -d 'How the exit status says what was found' -r -f -a "nagios\t'0 ok, 1 warning, 2 critical, 3 unknown; for Nagios and its kin'
npd\t'0 ok, 1 problem, 2 unknown, and one line of at most 80 characters; for node-problem-detector'
bool\t'0 nothing at or above --threshold, 1 otherwise; for scripts'"
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -l threshold -d 'What counts for --exit-style bool' -r -f -a "info\t'Everything'
warn\t'Warnings and worse'
critical\t'Critical only'"
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -s o -l columns -d 'A table of these columns, in this order, instead of the text' -r -f -a "severity\t'How bad it is; unknown for a check that could not decide'
check\t'The check'
subject\t'What it is about'
text\t'What is wrong, or why a check could not decide'
fix\t'How to mend it'
safe\t'Whether --fix mends it: yes or no'
since\t'Since when, in seconds after boot'"
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -l interval -d 'How far apart the three samples of the counters are, on the running system' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -l sysfs-root -d 'Look at the guest in this directory instead of the running system' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -l from -d 'Look at the guest in this archive, which `netvsc collect` made' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR is set; with CLICOLOR_FORCE set, always'
always\t'Always'
never\t'Never'"
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -l list -d 'List the checks instead of running them'
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -l brief -d 'One line per finding, without header: severity, check, subject (also -br)'
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -l fix -d 'Carry out the safe fixes, and print what undoes them'
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -l dry-run -d 'Only show what --fix would do'
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -l force -d 'Touch also what carries this session or the default route'
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -s j -l json -d 'Print JSON'
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -s p -l pretty -d 'Print JSON over several lines'
complete -c netvsc -n "__fish_netvsc_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand resolve" -l mac -d 'The pair with this permanent MAC address' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand resolve" -l serial -d 'The pair with this serial number' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand resolve" -l guid -d 'The pair whose NIC or virtual PCI bus has this GUID' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand resolve" -l pci -d 'The pair whose VF has this PCI address' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand resolve" -l interface -d 'The pair to which this interface belongs, as NIC or as VF' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand resolve" -l print -d 'What to print of it' -r -f -a "nic\t'The interface of the synthetic NIC'
vf\t'The interface of the VF'
guid\t'The GUID of the synthetic NIC'
pci\t'The PCI address of the VF'
mac\t'The permanent MAC address'"
complete -c netvsc -n "__fish_netvsc_using_subcommand resolve" -l sysfs-root -d 'Look at the guest in this directory instead of the running system' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand resolve" -l from -d 'Look at the guest in this archive, which `netvsc collect` made' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand resolve" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR is set; with CLICOLOR_FORCE set, always'
always\t'Always'
never\t'Never'"
complete -c netvsc -n "__fish_netvsc_using_subcommand resolve" -s j -l json -d 'Print JSON'
complete -c netvsc -n "__fish_netvsc_using_subcommand resolve" -s p -l pretty -d 'Print JSON over several lines'
complete -c netvsc -n "__fish_netvsc_using_subcommand resolve" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand lsvmbus" -s o -l columns -d 'A table of these columns, in this order, instead of the classic text' -r -f -a "id\t'Number of the primary channel'
guid\t'GUID of the device'
class\t'GUID of its class'
name\t'What its class is called'
driver\t'Driver that has it'
state\t'State of its channel, a number of the kernel'
node\t'NUMA node'
channels\t'Channels, the primary first'
cpus\t'Processors of the channels, in the same order'
path\t'Directory in sysfs'"
complete -c netvsc -n "__fish_netvsc_using_subcommand lsvmbus" -l sysfs-root -d 'Look at the guest in this directory instead of the running system' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand lsvmbus" -l from -d 'Look at the guest in this archive, which `netvsc collect` made' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand lsvmbus" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR is set; with CLICOLOR_FORCE set, always'
always\t'Always'
never\t'Never'"
complete -c netvsc -n "__fish_netvsc_using_subcommand lsvmbus" -s v -d 'Say more: channels and processors; twice: GUIDs and paths as well'
complete -c netvsc -n "__fish_netvsc_using_subcommand lsvmbus" -l brief -d 'One line per device, without header: GUID, driver, class (also -br)'
complete -c netvsc -n "__fish_netvsc_using_subcommand lsvmbus" -s j -l json -d 'Print JSON'
complete -c netvsc -n "__fish_netvsc_using_subcommand lsvmbus" -s p -l pretty -d 'Print JSON over several lines'
complete -c netvsc -n "__fish_netvsc_using_subcommand lsvmbus" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand watch" -l log -d 'Append every change to this file as well, as JSON' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand watch" -l until -d 'End once every NIC is accelerated, or has no VF to wait for' -r -f -a "settled\t'No NIC waits for a VF'"
complete -c netvsc -n "__fish_netvsc_using_subcommand watch" -l timeout -d 'With --until, fail after this time instead of waiting for ever' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand watch" -l sysfs-root -d 'Look at the guest in this directory instead of the running system' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand watch" -l from -d 'Look at the guest in this archive, which `netvsc collect` made' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand watch" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR is set; with CLICOLOR_FORCE set, always'
always\t'Always'
never\t'Never'"
complete -c netvsc -n "__fish_netvsc_using_subcommand watch" -s a -l all -d 'Also interfaces that are no NICs: their coming and going, names, up and down'
complete -c netvsc -n "__fish_netvsc_using_subcommand watch" -l history -d 'First what the kernel log tells of the past'
complete -c netvsc -n "__fish_netvsc_using_subcommand watch" -l notify-udev -d 'Have udev look again at a VF when it is joined with its NIC'
complete -c netvsc -n "__fish_netvsc_using_subcommand watch" -s j -l json -d 'Print JSON'
complete -c netvsc -n "__fish_netvsc_using_subcommand watch" -s p -l pretty -d 'Print JSON over several lines'
complete -c netvsc -n "__fish_netvsc_using_subcommand watch" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand metrics" -l textfile -d 'Write them to this file, for node_exporter\'s textfile collector' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand metrics" -l listen -d 'Serve them over HTTP, at unix:PATH or a loopback address and port' -r
complete -c netvsc -n "__fish_netvsc_using_subcommand metrics" -l sysfs-root -d 'Look at the guest in this directory instead of the running system' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand metrics" -l from -d 'Look at the guest in this archive, which `netvsc collect` made' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand metrics" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR is set; with CLICOLOR_FORCE set, always'
always\t'Always'
never\t'Never'"
complete -c netvsc -n "__fish_netvsc_using_subcommand metrics" -l per-channel -d 'Count interrupts and full rings by channel; these are many'
complete -c netvsc -n "__fish_netvsc_using_subcommand metrics" -s j -l json -d 'Print JSON'
complete -c netvsc -n "__fish_netvsc_using_subcommand metrics" -s p -l pretty -d 'Print JSON over several lines'
complete -c netvsc -n "__fish_netvsc_using_subcommand metrics" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand collect" -s o -l output -d 'File to write, which must not be there yet; - for standard output' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand collect" -l sysfs-root -d 'Look at the guest in this directory instead of the running system' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand collect" -l from -d 'Look at the guest in this archive, which `netvsc collect` made' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand collect" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR is set; with CLICOLOR_FORCE set, always'
always\t'Always'
never\t'Never'"
complete -c netvsc -n "__fish_netvsc_using_subcommand collect" -s j -l json -d 'Print JSON'
complete -c netvsc -n "__fish_netvsc_using_subcommand collect" -s p -l pretty -d 'Print JSON over several lines'
complete -c netvsc -n "__fish_netvsc_using_subcommand collect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand udev" -l sysfs-root -d 'Look at the guest in this directory instead of the running system' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand udev" -l from -d 'Look at the guest in this archive, which `netvsc collect` made' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand udev" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR is set; with CLICOLOR_FORCE set, always'
always\t'Always'
never\t'Never'"
complete -c netvsc -n "__fish_netvsc_using_subcommand udev" -l retrigger-peers -d 'Have udev look again at the VFs of this NIC instead'
complete -c netvsc -n "__fish_netvsc_using_subcommand udev" -s j -l json -d 'Print JSON'
complete -c netvsc -n "__fish_netvsc_using_subcommand udev" -s p -l pretty -d 'Print JSON over several lines'
complete -c netvsc -n "__fish_netvsc_using_subcommand udev" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand install" -l root -d 'Install into the system below this directory, such as an image' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand install" -l sysfs-root -d 'Look at the guest in this directory instead of the running system' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand install" -l from -d 'Look at the guest in this archive, which `netvsc collect` made' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand install" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR is set; with CLICOLOR_FORCE set, always'
always\t'Always'
never\t'Never'"
complete -c netvsc -n "__fish_netvsc_using_subcommand install" -l dry-run -d 'Only say what would be done'
complete -c netvsc -n "__fish_netvsc_using_subcommand install" -l force -d 'Replace files that somebody else put there or changed'
complete -c netvsc -n "__fish_netvsc_using_subcommand install" -l without-program -d 'Leave the program itself out, as where a package brings it'
complete -c netvsc -n "__fish_netvsc_using_subcommand install" -l for-guest -d 'Also what fits this guest only: its VFs for NetworkManager by MAC, and .link files that keep its NICs\' names'
complete -c netvsc -n "__fish_netvsc_using_subcommand install" -s j -l json -d 'Print JSON'
complete -c netvsc -n "__fish_netvsc_using_subcommand install" -s p -l pretty -d 'Print JSON over several lines'
complete -c netvsc -n "__fish_netvsc_using_subcommand install" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand uninstall" -l root -d 'Take it away from the system below this directory' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand uninstall" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR is set; with CLICOLOR_FORCE set, always'
always\t'Always'
never\t'Never'"
complete -c netvsc -n "__fish_netvsc_using_subcommand uninstall" -l dry-run -d 'Only say what would be done'
complete -c netvsc -n "__fish_netvsc_using_subcommand uninstall" -s j -l json -d 'Print JSON'
complete -c netvsc -n "__fish_netvsc_using_subcommand uninstall" -s p -l pretty -d 'Print JSON over several lines'
complete -c netvsc -n "__fish_netvsc_using_subcommand uninstall" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand completions" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand bind" -l sysfs-root -d 'Look at the guest in this directory instead of the running system' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand bind" -l from -d 'Look at the guest in this archive, which `netvsc collect` made' -r -F
complete -c netvsc -n "__fish_netvsc_using_subcommand bind" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR is set; with CLICOLOR_FORCE set, always'
always\t'Always'
never\t'Never'"
complete -c netvsc -n "__fish_netvsc_using_subcommand bind" -l uio -d 'Give the NIC to user space (uio_hv_generic)'
complete -c netvsc -n "__fish_netvsc_using_subcommand bind" -l kernel -d 'Give the NIC back to the driver that it had, or to the kernel\'s own (hv_netvsc)'
complete -c netvsc -n "__fish_netvsc_using_subcommand bind" -l recover -d 'Give back what a run left that was killed, and nothing else: the NIC that is named, or all of them'
complete -c netvsc -n "__fish_netvsc_using_subcommand bind" -l restore -d 'Give back every device that was taken, as it was, but for those that are driven'
complete -c netvsc -n "__fish_netvsc_using_subcommand bind" -l dry-run -d 'Show every write and make none'
complete -c netvsc -n "__fish_netvsc_using_subcommand bind" -l force -d 'Take it although a default route or this session goes through it'
complete -c netvsc -n "__fish_netvsc_using_subcommand bind" -s j -l json -d 'Print JSON'
complete -c netvsc -n "__fish_netvsc_using_subcommand bind" -s p -l pretty -d 'Print JSON over several lines'
complete -c netvsc -n "__fish_netvsc_using_subcommand bind" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "run" -d 'Bring up the NICs, pair them with their VFs and carry traffic'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "host" -d 'Be the simulated host, for a guest in another process'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "sim" -d 'Run whole systems from seeds and check what must always hold'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "list" -d 'List the NICs of this Linux guest with their VFs'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "show" -d 'Show everything about a pair: facts with their sources, both interfaces side by side, the kernel\'s last words'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "explain" -d 'Explain in sentences why something is or is not a pair'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "check" -d 'Find what is wrong with NICs and VFs, say why, and mend it'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "resolve" -d 'Print one word about a pair, for scripts'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "lsvmbus" -d 'List all devices on VMBus'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "watch" -d 'Print what happens to the pairs of this Linux guest, as it happens'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "metrics" -d 'Tell what is known of NICs and VFs as Prometheus metrics'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "collect" -d 'Put everything that the other verbs read into one archive'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "udev" -d 'Say what a network device is, as properties for udev'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "install" -d 'Put udev rules, units, completions and man pages in place'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "uninstall" -d 'Take away what `install` put in place'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "completions" -d 'Print the completions of a shell'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "bind" -d 'Give a NIC to user space, or back to the kernel'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and not __fish_seen_subcommand_from run host sim list show explain check resolve lsvmbus watch metrics collect udev install uninstall completions bind help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c netvsc -n "__fish_netvsc_using_subcommand help; and __fish_seen_subcommand_from sim" -f -a "merge" -d 'Add up what `--out` wrote: shares of the same seeds, other seeds, other profiles'
