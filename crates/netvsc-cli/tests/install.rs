//! `netvsc install` and `uninstall` in roots of their own.

#[path = "../../netvsc-linux/tests/guest/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;
mod schema;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use guest::kinds;
use serde_json::Value;
use tempfile::TempDir;

const RULES: &str = "usr/lib/udev/rules.d/60-netvsc.rules";

fn netvsc(verb: &str, root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netvsc"));
    command.arg(verb).arg("--root").arg(root).args(arguments);
    command.output().expect("the program runs")
}

fn done(verb: &str, root: &Path, arguments: &[&str]) -> String {
    let output = netvsc(verb, root, arguments);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Without the program itself, which is large.
fn install(root: &Path) -> String {
    done("install", root, &["--without-program"])
}

/// Everything below a folder: contents, or the target of a link; folders as well.
fn tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, at: &Path, all: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(at).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("below").display().to_string();
            if path.is_symlink() {
                let target = fs::read_link(&path).expect("a link");
                all.insert(name, target.into_os_string().into_encoded_bytes());
            } else if path.is_dir() {
                all.insert(name, b"folder".to_vec());
                walk(root, &path, all);
            } else {
                all.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(root, root, &mut all);
    all
}

fn root() -> TempDir {
    let root = tempfile::tempdir().expect("the temporary folder is writable");
    fs::create_dir_all(root.path().join("usr/lib/udev/rules.d")).expect("a folder");
    fs::write(root.path().join("usr/lib/udev/rules.d/50-other.rules"), "# other\n")
        .expect("a file");
    root
}

#[test]
fn what_is_installed_can_be_taken_away_without_a_trace() {
    let root = root();
    let before = tree(root.path());
    let text = install(root.path());
    assert!(text.contains("/usr/share/man/man1/netvsc-list.1: create\n"), "{text}");
    assert!(text.contains("\nnext:\n  udevadm control --reload"), "{text}");
    let after = tree(root.path());
    for path in [
        RULES,
        "usr/lib/udev/netvsc",
        "usr/lib/systemd/network/01-netvsc-vf.network",
        "usr/lib/systemd/system/netvsc-watch.service",
        "usr/lib/systemd/system/netvsc-run@.service",
        "usr/lib/sysusers.d/netvsc.conf",
        "usr/lib/dracut/modules.d/90netvsc/module-setup.sh",
        "usr/share/initramfs-tools/hooks/netvsc",
        "usr/share/bash-completion/completions/netvsc",
        "usr/share/zsh/site-functions/_netvsc",
        "usr/share/fish/vendor_completions.d/netvsc.fish",
        "var/lib/netvsc/installed.json",
    ] {
        assert!(after.contains_key(path), "{path}");
    }
    let mode =
        |path: &str| fs::metadata(root.path().join(path)).expect("a file").permissions().mode();
    assert_eq!(mode(RULES) & 0o777, 0o644);
    assert_eq!(mode("usr/share/initramfs-tools/hooks/netvsc") & 0o777, 0o755);
    // Once more changes nothing.
    assert!(!install(root.path()).contains("create"));
    assert_eq!(tree(root.path()), after);
    let text = done("uninstall", root.path(), &[]);
    assert!(text.contains(&format!("/{RULES}: remove\n")), "{text}");
    assert_eq!(tree(root.path()), before);
    assert_eq!(done("uninstall", root.path(), &[]), "nothing to do\n");
}

#[test]
fn a_dry_run_says_the_same_and_does_nothing() {
    let root = root();
    let before = tree(root.path());
    let dry = done("install", root.path(), &["--without-program", "--dry-run"]);
    assert_eq!(tree(root.path()), before);
    let json = done("install", root.path(), &["--without-program", "--dry-run", "--json"]);
    let plan = schema::valid(&json, "install-1.json");
    assert_eq!((&plan["done"], &plan["steps"][0]["act"]), (&Value::Bool(false), &"create".into()));
    assert!(install(root.path()).starts_with(&dry));
    let after = tree(root.path());
    let dry = done("uninstall", root.path(), &["--dry-run", "--json"]);
    let plan = schema::valid(&dry, "install-1.json");
    assert_eq!((&plan["done"], &plan["dry_run"]), (&Value::Bool(false), &Value::Bool(true)));
    assert_eq!(plan["steps"][0]["act"], "remove");
    assert_eq!(tree(root.path()), after);
}

#[test]
fn the_program_comes_along() {
    let root = root();
    done("install", root.path(), &[]);
    let program = root.path().join("usr/bin/netvsc");
    // By the link that the rules use.
    let helper = root.path().join("usr/lib/udev/netvsc");
    assert_eq!(helper.canonicalize().expect("a link"), program.canonicalize().expect("a file"));
    let version = Command::new(&helper).arg("--version").output().expect("it runs");
    assert!(version.stdout.starts_with(b"netvsc "));
    done("uninstall", root.path(), &[]);
    assert!(!program.exists());
}

#[test]
fn a_changed_file_is_kept_and_reported() {
    let root = root();
    install(root.path());
    let rules = root.path().join(RULES);
    fs::write(&rules, "# mine\n").expect("a file");
    let output = netvsc("install", root.path(), &["--without-program"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&format!("/{RULES}: in the way: changed")), "{text}");
    assert_eq!(fs::read(&rules).expect("a file"), b"# mine\n");
    let text = done("uninstall", root.path(), &[]);
    assert!(text.contains(&format!("/{RULES}: kept: changed")), "{text}");
    assert_eq!(fs::read(&rules).expect("a file"), b"# mine\n");
    assert!(!root.path().join("var/lib/netvsc").exists());
}

#[test]
fn somebody_elses_file_is_not_replaced_and_nothing_else_is_done() {
    let root = root();
    fs::write(root.path().join(RULES), "# theirs\n").expect("a file");
    let before = tree(root.path());
    let output = netvsc("install", root.path(), &["--without-program"]);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("nothing was changed") && errors.contains("--force"), "{errors}");
    assert_eq!(tree(root.path()), before);
    done("install", root.path(), &["--without-program", "--force"]);
    assert!(fs::read_to_string(root.path().join(RULES)).expect("a file").contains("netvsc udev"));
}

#[test]
fn a_file_that_was_there_before_stays() {
    let root = root();
    install(root.path());
    let rules = fs::read(root.path().join(RULES)).expect("a file");
    done("uninstall", root.path(), &[]);
    fs::write(root.path().join(RULES), &rules).expect("a file");
    assert!(install(root.path()).contains(&format!("/{RULES}: present, and not ours")));
    done("uninstall", root.path(), &[]);
    assert_eq!(fs::read(root.path().join(RULES)).expect("a file"), rules);
}

#[test]
fn no_link_of_an_image_leads_out_of_it() {
    let outside = tempfile::tempdir().expect("the temporary folder is writable");
    let root = root();
    // Absolute in the image, and a folder of this machine as well.
    let elsewhere = outside.path().join("systemd");
    fs::create_dir(&elsewhere).expect("a folder");
    symlink(&elsewhere, root.path().join("usr/lib/systemd")).expect("a link");
    let output = netvsc("install", root.path(), &["--without-program"]);
    assert_eq!(output.status.code(), Some(1), "the link leads nowhere in the image");
    assert!(tree(&elsewhere).is_empty());
    // With its target in the image, it is followed there.
    let inside = root.path().join(elsewhere.strip_prefix("/").expect("absolute"));
    fs::create_dir_all(&inside).expect("a folder");
    install(root.path());
    assert!(tree(&elsewhere).is_empty() && inside.join("system/netvsc-watch.service").exists());
}

#[test]
fn a_list_that_lies_is_refused() {
    let root = root();
    install(root.path());
    let list = root.path().join("var/lib/netvsc/installed.json");
    for (text, words) in [
        ("not JSON", "expected"),
        ("{\"schema_version\":2,\"version\":\"\",\"files\":[],\"folders\":[]}", "found 2"),
        (
            "{\"schema_version\":1,\"version\":\"\",\"files\":[{\"path\":\"/../x\",\"mark\":\"\"}],\"folders\":[]}",
            "no path from the root",
        ),
    ] {
        fs::write(&list, text).expect("a file");
        let output = netvsc("uninstall", root.path(), &[]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && errors.contains(words), "{errors}");
    }
    let output = netvsc("install", Path::new("/no/such/root"), &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/root"));
}

#[test]
fn what_fits_one_guest_only_is_made_of_its_pairs() {
    let (root, guest) = (root(), kinds::worked_example());
    let sysfs = guest.root().to_str().expect("text");
    done("install", root.path(), &["--without-program", "--for-guest", "--sysfs-root", sysfs]);
    let read = |path: &str| fs::read_to_string(root.path().join(path)).expect("a file");
    let text = read("etc/NetworkManager/conf.d/90-netvsc-vf.conf");
    assert!(
        text.contains(
            "match-device=mac:7c:1e:52:25:55:d2;mac:7c:1e:52:25:5c:a6;except:driver:hv_netvsc\n"
        ),
        "{text}"
    );
    let text = read("etc/systemd/network/69-netvsc-eth1.link");
    assert!(text.contains("NETVSC_GUID=7c1e5225-5ca6-7c1e-5225-5ca67c1e5225\n"), "{text}");
    // Installed again without it, it goes.
    let text = install(root.path());
    assert!(text.contains("90-netvsc-vf.conf: remove"), "{text}");
    assert!(!root.path().join("etc/NetworkManager/conf.d/90-netvsc-vf.conf").exists());
}

#[test]
fn what_is_written_for_networkmanager_is_known_to_the_checks() {
    let mut guest = guest::Guest::new();
    let pair = kinds::one(&mut guest);
    guest.remove("usr/lib/udev/rules.d/10-azure-unmanaged-sriov.rules");
    guest.udev(pair.port.index, &[("ID_NET_DRIVER", "mlx5_core")]);
    guest
        .write(&format!("run/NetworkManager/devices/{}", pair.nic.index), "[device]\nmanaged=true");
    let root = guest.root().to_str().expect("text");
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netvsc"));
        let output = command.args(["check", "--sysfs-root", root]).output();
        String::from_utf8(output.expect("the program runs").stdout).expect("text")
    };
    assert!(check().contains("own.manager"), "{}", check());
    done("install", guest.root(), &["--without-program", "--for-guest", "--sysfs-root", root]);
    assert!(!check().contains("own.manager"), "{}", check());
}

/// Runs a checker of the system; none if it is not there or cannot do that.
fn checker(test: &str, program: &str, arguments: &[&str], needs: &str) -> Option<Output> {
    let help = Command::new(program).arg("--help").output();
    let reason = match help {
        Ok(help) if String::from_utf8_lossy(&help.stdout).contains(needs) => {
            return Some(
                Command::new(program).args(arguments).output().expect("it ran a moment ago"),
            );
        }
        Ok(_) => format!("this {program} knows no `{needs}`"),
        Err(error) => format!("{program} cannot be run: {error}"),
    };
    eprintln!("skipped: {test}: {reason}");
    None
}

#[test]
fn systemd_finds_no_fault_with_the_units() {
    let root = root();
    done("install", root.path(), &[]);
    for (unit, checked) in [
        ("netvsc-watch.service", "netvsc-watch.service"),
        ("netvsc-metrics.service", "netvsc-metrics.service"),
        ("netvsc-metrics.timer", "netvsc-metrics.timer"),
        // A template is looked at as one of its instances.
        ("netvsc-run@.service", "netvsc-run@eth1.service"),
    ] {
        verify_unit(root.path(), unit, checked);
    }
}

#[test]
fn what_a_unit_leaves_in_run_can_be_read_by_others_and_its_user_comes_along() {
    let root = root();
    let text = install(root.path());
    assert!(text.contains("systemd-sysusers"), "{text}");
    let users = root.path().join("usr/lib/sysusers.d/netvsc.conf");
    let users = fs::read_to_string(users).expect("a file");
    let units = tree(&root.path().join("usr/lib/systemd/system"));
    for (unit, text) in units {
        let text = String::from_utf8(text).expect("text");
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.map(str::to_owned)
        };
        // What is kept of a dynamic user's lies below /run/private, which is root's alone.
        let kept = value("RuntimeDirectoryPreserve").is_some_and(|kept| kept != "no");
        assert!(!kept || value("DynamicUser").is_none(), "{unit}");
        if unit == "netvsc-metrics.service" {
            assert_eq!(value("RuntimeDirectoryMode").as_deref(), Some("0755"));
        }
        for user in value("User").iter().filter(|user| *user != "root") {
            assert!(users.contains(&format!("\nu {user} - ")), "{unit}: {user} in {users}");
        }
    }
}

#[test]
fn the_unit_of_a_run_takes_names_as_they_stand_and_waits_for_its_nic() {
    let root = root();
    done("install", root.path(), &[]);
    let unit = root.path().join("usr/lib/systemd/system/netvsc-run@.service");
    let unit = fs::read_to_string(unit).expect("a file");
    // An instance that is a GUID has dashes, of which %I would make slashes.
    assert!(unit.contains("--nic %i ") && !unit.contains("%I"), "{unit}");
    for line in [
        "StartLimitIntervalSec=0",
        "Restart=on-failure",
        "RestartSec=5",
        "RestartPreventExitStatus=2",
    ] {
        assert!(unit.lines().any(|own| own == line), "{line}: {unit}");
    }
}

#[test]
fn systemd_makes_the_user_of_the_metrics() {
    let root = root();
    install(root.path());
    fs::create_dir_all(root.path().join("etc")).expect("a folder");
    let at = format!("--root={}", root.path().display());
    let name = "systemd_makes_the_user_of_the_metrics";
    if let Some(output) = checker(name, "systemd-sysusers", &[&at], "--root") {
        let errors = String::from_utf8_lossy(&output.stderr);
        // Only root may write down users, even those of another root.
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: {name}: not root");
        }
        assert!(output.status.success(), "{errors}");
        let users = fs::read_to_string(root.path().join("etc/passwd")).expect("a file");
        assert!(users.contains("netvsc-metrics:"), "{users}{errors}");
    }
}

fn verify_unit(root: &Path, unit: &str, checked: &str) {
    let folder = root.join("usr/lib/systemd/system");
    let (unit, checked) = (folder.join(unit), folder.join(checked));
    // The program has to be where the unit looks for it, which is not so on the machine that tests.
    let program = root.join("usr/bin/netvsc");
    let text = fs::read_to_string(&unit).expect("a file");
    fs::write(&checked, text.replace("/usr/bin/netvsc", program.to_str().expect("text")))
        .expect("a file");
    let arguments = ["verify", "--man=no", checked.to_str().expect("text")];
    let name = "systemd_finds_no_fault_with_the_units";
    if let Some(output) = checker(name, "systemd-analyze", &arguments, "verify") {
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !errors.contains("netvsc"), "{errors}");
    }
}

#[test]
fn udev_finds_no_fault_with_the_rules() {
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/udev/60-netvsc.rules");
    let arguments = ["verify", "--resolve-names=never", rules];
    if let Some(output) =
        checker("udev_finds_no_fault_with_the_rules", "udevadm", &arguments, "verify")
    {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Three interfaces of which udev says one thing each, a file that gives an address to whoever comes, and ours before it. Prints what
/// the real systemd-networkd makes of each. `$1` is the folder with our files; namespaces and mounts are this script's own.
const NETWORKD: &str = r#"
set -e
program=/usr/lib/systemd/systemd-networkd
[ -x $program ] || { echo "no $program" >&2; exit 77; }
for folder in /run /etc/systemd/network; do [ ! -d $folder ] || mount -t tmpfs none $folder || exit 77; done
mount -t sysfs none /sys || exit 77
mkdir -p /run/udev/data /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp /run/files
: > /run/udev/control
cp "$1"/*.network /run/files
printf '[Match]\nType=ether\n[Network]\nDHCP=yes\n' > /run/files/zz-all.network
mount --bind /run/files /usr/lib/systemd/network
chown -R systemd-network /run/systemd/netif
for role in vf pending standalone; do
    ip link add a-$role type veth peer name b-$role
    for link in a-$role b-$role; do
        printf "I:1\nE:NETVSC_ROLE=$role\nG:systemd\nQ:systemd\nV:1\n" > /run/udev/data/n$(cat /sys/class/net/$link/ifindex)
        ip link set $link up
    done
done
$program 2>/run/log & daemon=$!
state() { sed -n 's/^ADMIN_STATE=//p' /run/systemd/netif/links/$(cat /sys/class/net/a-$1/ifindex) 2>/dev/null || true; }
decided() { case "$(state $1)" in unmanaged|config*|failed) ;; *) return 1;; esac; }
for attempt in $(seq 400); do
    decided vf && decided pending && decided standalone && break
    sleep 0.05
done
for role in vf pending standalone; do echo "$role $(state $role)"; done
kill $daemon
"#;

#[test]
fn networkd_leaves_alone_what_udev_was_told_to_be_a_vf() {
    let test = "networkd_leaves_alone_what_udev_was_told_to_be_a_vf";
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "--", "sh", "-c", NETWORKD, "sh"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/network"))
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => return eprintln!("skipped: {test}: `unshare` cannot be run: {error}"),
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    // What is not there, or not allowed, before anything is tried.
    if output.status.code() == Some(77) || errors.contains("unshare: ") {
        return eprintln!("skipped: {test}: {}", errors.trim());
    }
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8_lossy(&output.stdout);
    let states: Vec<_> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    assert_eq!(states[..2], [("vf", "unmanaged"), ("pending", "unmanaged")], "{text}");
    assert!(states[2].1.starts_with("config"), "the file for all is heeded otherwise: {text}");
}

/// Runs a shell script that stands in for a builder of initramfs images, and gives what it was asked for.
fn build(shell: &str, script: &str, argument: &Path) -> String {
    let output =
        Command::new(shell).args(["-c", script, "sh"]).arg(argument).output().expect("a shell");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn images_get_the_rule_and_the_program() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    let script =
        "inst_multiple() { echo \"$@\"; }; inst() { echo \"$@\"; }; inst_rules() { echo \"$@\"; }
        . \"$1\"; check && depends && install";
    let text = build("bash", script, &assets.join("dracut/module-setup.sh"));
    assert_eq!(text, "udev-rules\n/usr/bin/netvsc\n/usr/lib/udev/netvsc\n60-netvsc.rules\n");
    let hook = assets.join("initramfs-tools/netvsc");
    assert_eq!(build("sh", "exec sh \"$1\" prereqs", &hook), "udev\n");
    assert_eq!(build("sh", "sh -n \"$1\" && bash -n \"$1\"", &hook), "");
}
