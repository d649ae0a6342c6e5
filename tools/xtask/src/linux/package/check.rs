//! Tries a package out: in a copy of what the root knows of its packages it is installed, looked at, and purged.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use super::{Package, VERSION, read};
use crate::linux::root::Mount;
use crate::process::Limits;
use crate::progress::Step;

/// Installs the package beside what the root has, without touching that, and prints what there is then, part by part. The
/// package's own programs run, on the copy (`DPKG_ROOT`). What DKMS would call is called: Debian's headers are to be passed
/// over, and the module is built from the package's source where there is metadata.
const TRY: &str = r#"
t=/tmp/machine
mkdir -p $t/usr/bin $t/usr/sbin $t/usr/lib64 $t/usr/lib/modules/$release $t/var/lib
for dir in bin sbin lib lib64; do ln -s usr/$dir $t/$dir; done
cp -a /var/lib/dpkg $t/var/lib/
cp /usr/lib/modules/$release/modules.* $t/usr/lib/modules/$release/
find $t | sort > /tmp/before
export DPKG_FORCE=script-chrootless
dpkg --root=$t --log=/tmp/log --install /out/neap_*.deb >&2
ko=$t/usr/lib/modules/$release/updates/neap.ko
src=$t/usr/src/neap-$version
echo "== contents"; dpkg-deb --contents /out/neap_*.deb
echo "== modinfo"; modinfo $ko
echo "== sections"; readelf --sections --wide $ko
echo "== index"; cat $t/usr/lib/modules/$release/modules.dep $t/usr/lib/modules/$release/modules.alias
echo "== neap"; $t/usr/bin/neap --version; $t/usr/bin/neap scx attach --help
echo "== header"; printf '#include <neap/neap.h>\nint main(void) { return sizeof(struct neap_info) != 64; }\n' > /tmp/h.c
gcc -std=c99 -Wall -Wextra -Werror -I$t/usr/include -o /tmp/h /tmp/h.c && /tmp/h && echo good
echo "== dkms"
for kernel_source_dir in /usr/lib/modules/$release/build /kernel/build; do
    unset KDIR
    (set +e; export kernel_source_dir; action=build; . $src/dkms.conf 2>&1; echo "$MAKE: $BUILD_EXCLUSIVE_KERNEL")
done
make -C $src/host-driver KDIR=/kernel/build modules >&2
modinfo --field vermagic $src/host-driver/neap.ko
make -C $src/host-driver KDIR=/kernel/build clean >&2
dpkg --root=$t --log=/tmp/log --purge neap >&2
echo "== left"
find $t | sort | comm -13 /tmp/before - | sed -e '\,/var/lib/dpkg,d' -e '\,/modules\.,d'
sed -n '/neap/p' $t/usr/lib/modules/$release/modules.{dep,alias}
"#;

/// Checks `package`; how many checks held.
pub fn check(package: &Package) -> Result<u64> {
    let Package { deb, root, kernel } = package;
    let mut step = Step::start("trying the package out");
    let out = deb.parent().context("the package lies in no directory")?;
    let mounts = [kernel.mount(), Mount { from: out, to: "/out", writable: false }];
    let script = format!("release='{}'\nversion='{VERSION}'\n{TRY}", kernel.release);
    // Bash, which DKMS's configuration is written for.
    let mut command = root.command(&mounts, "bash")?;
    let done = crate::process::run(command.args(["-ec", &script]), Limits::total(600), &mut step)?;
    ensure!(done.ok(), "trying the package out: {}\n{}", done.verdict(), done.tail(60));
    let held = judge(&parts(&done.out), &kernel.release)?;
    step.done();
    Ok(held)
}

/// What was printed, by part.
fn parts(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut parts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut name = "";
    for line in text.lines() {
        match line.strip_prefix("== ") {
            Some(next) => name = next,
            None => parts.entry(name).or_default().push(line),
        }
    }
    parts
}

fn judge(parts: &BTreeMap<&str, Vec<&str>>, release: &str) -> Result<u64> {
    let part = |name: &str| parts.get(name).map_or(&[] as &[&str], Vec::as_slice);
    let mut held = 0;
    let mut holds = |holds: bool, what: &str, name: &str| -> Result<()> {
        ensure!(holds, "{what}; {name}:\n{}", part(name).join("\n"));
        held += 1;
        Ok(())
    };

    let contents = part("contents");
    let owned = contents.iter().all(|line| line.split_whitespace().nth(1) == Some("root/root"));
    holds(owned, "the package has files that are not root's", "contents")?;
    let readable = contents.iter().all(|line| {
        let mode = line.split_whitespace().next().unwrap_or_default();
        mode == "drwxr-xr-x" || mode == "-rw-r--r--" || mode == "-rwxr-xr-x"
    });
    holds(readable, "the package has files that not everybody may read", "contents")?;
    let module = format!("usr/lib/modules/{release}/updates/neap.ko");
    let source = format!("usr/src/neap-{VERSION}/host-driver/main.rs");
    for path in ["usr/bin/neap", "usr/lib/neap/neap.bpf.o", "usr/share/doc/neap/copyright", &module, &source]
    {
        let there = contents.iter().any(|line| line.ends_with(&format!(" ./{path}")));
        holds(there, &format!("the package has no {path}"), "contents")?;
    }

    let modinfo = part("modinfo");
    let field = |name: &str| modinfo.iter().find_map(|line| Some(line.strip_prefix(name)?.trim()));
    holds(field("license:") == Some("GPL"), "the module's licence is not the kernel's", "modinfo")?;
    let vermagic = field("vermagic:").unwrap_or_default().to_owned();
    let built_for = vermagic.split_whitespace().next() == Some(release);
    holds(built_for, &format!("the module is not built for {release}"), "modinfo")?;
    let example = read("host-driver/package/modprobe.conf")?;
    let (defaults, open) = options(&example);
    let parameters: BTreeMap<&str, &str> =
        modinfo.iter().filter_map(|line| line.strip_prefix("parm:")?.trim().split_once(':')).collect();
    let same = parameters.keys().copied().eq(defaults.keys().chain(&open).copied().collect::<BTreeSet<_>>());
    holds(same, "modprobe.conf and the module have not the same parameters", "modinfo")?;
    for (name, told) in parameters.iter().filter(|(name, _)| !open.contains(*name)) {
        let default = defaults.get(name).is_some_and(|value| told.contains(&format!("(default: {value})")));
        holds(default, &format!("{name} is not told with the default that modprobe.conf has"), "modinfo")?;
    }
    let btf = part("sections").iter().any(|line| line.split_whitespace().any(|word| word == ".BTF"));
    holds(btf, "the module has lost its BTF", "sections")?;

    let index = part("index");
    let found = index.iter().any(|line| line.starts_with("updates/neap.ko:"));
    holds(found, "depmod has not found the module", "index")?;
    let alias = index.iter().any(|line| line.contains("pci:v00001AF4d00001110") && line.ends_with(" neap"));
    holds(alias, "the virtual IPU's function does not call for the module", "index")?;
    let runs = part("neap").first().is_some_and(|line| *line == format!("neap {VERSION}"));
    holds(runs, "neap does not run with the root's libraries", "neap")?;
    let attaches = part("neap").iter().any(|line| line.contains("--object"));
    holds(attaches, "neap was built without the loader", "neap")?;
    holds(part("header") == ["good"], "the uAPI's header does not compile", "header")?;

    let dkms = part("dkms");
    let over = dkms.iter().any(|line| line.contains("no metadata of the kernel's Rust"));
    let over = over && dkms.iter().any(|line| line.ends_with("/build modules: ^no metadata$"));
    holds(over, "DKMS does not pass over headers without metadata, or does not say why", "dkms")?;
    let taken = dkms.iter().any(|line| line.contains("KDIR=/kernel/build modules: ^(7"));
    holds(taken, "DKMS does not take a kernel with metadata", "dkms")?;
    let same = dkms.iter().any(|line| line.trim() == vermagic);
    holds(same, "the package's source does not make the package's module", "dkms")?;
    holds(part("left").is_empty(), "the package leaves something behind", "left")?;
    Ok(held)
}

/// The parameters that modprobe's configuration sets, and those that it shows and leaves open.
fn options(conf: &str) -> (BTreeMap<&str, &str>, BTreeSet<&str>) {
    let of = |start: &'static str| {
        let lines = conf.lines().filter_map(move |line| line.strip_prefix(start));
        lines.flat_map(str::split_whitespace).filter_map(|word| word.split_once('='))
    };
    (of("options neap ").collect(), of("# options neap ").map(|(name, _)| name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_taken_apart() {
        let parts = parts("== a\n1\n2\n== left\n== b\n3\n");
        assert_eq!((parts["a"].as_slice(), parts["b"].as_slice()), (&["1", "2"][..], &["3"][..]));
        assert!(!parts.contains_key("left"));
    }

    #[test]
    fn modprobe_s_example_is_read() {
        let (defaults, open) =
            options("# Words.\n# options neap cpus=0-3\noptions neap tasks=4096 policy=fifo\n");
        assert_eq!(defaults.into_iter().collect::<Vec<_>>(), [("policy", "fifo"), ("tasks", "4096")]);
        assert_eq!(open.into_iter().collect::<Vec<_>>(), ["cpus"]);
    }

    #[test]
    fn a_package_without_contents_does_not_hold() {
        let error = judge(&BTreeMap::new(), "7.3.4").unwrap_err().to_string();
        assert!(error.contains("the package has no usr/bin/neap"), "{error}");
    }
}
