//! Kernel modules from the initramfs: `/modules/NAME.ko`, and `/modules/modules.dep` with what each needs.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::Error;

const DIR: &str = "/modules";

/// Loads `name` and what it depends on. A module that is not there is taken to be built into the kernel:
/// what it was needed for fails by its own name if it is not.
pub(super) fn load(name: &str) -> Result<(), Error> {
    // A kernel that has everything built in comes without this directory.
    let table = fs::read_to_string(Path::new(DIR).join("modules.dep")).unwrap_or_default();
    for module in plan(&table, name) {
        insert(&module).map_err(|error| Error::Module(module.clone(), error))?;
    }
    Ok(())
}

/// The files to insert for `name`, dependencies first.
fn plan(table: &str, name: &str) -> Vec<String> {
    fn visit(table: &str, file: &str, seen: &mut HashSet<String>, order: &mut Vec<String>) {
        let mut lines = table.lines().filter_map(|line| line.split_once(':'));
        let Some((_, needs)) = lines.find(|(module, _)| same(module, file)) else { return };
        if !seen.insert(file.replace('-', "_")) {
            return;
        }
        for need in needs.split_whitespace() {
            visit(table, need, seen, order);
        }
        order.push(file.to_owned());
    }
    let (mut seen, mut order) = (HashSet::new(), Vec::new());
    visit(table, &format!("{name}.ko"), &mut seen, &mut order);
    order
}

/// The kernel takes `-` and `_` in module names for the same.
fn same(a: &str, b: &str) -> bool {
    a.replace('-', "_") == b.replace('-', "_")
}

fn insert(file: &str) -> io::Result<()> {
    let path = Path::new(DIR).join(file);
    match rustix::system::finit_module(File::open(path)?, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::plan;

    #[test]
    fn dependencies_come_first_and_once() {
        let table = "a.ko: b.ko c.ko\nb.ko: c.ko\nc.ko:\nd-e.ko: a.ko\n";
        assert_eq!(plan(table, "a"), ["c.ko", "b.ko", "a.ko"]);
        assert_eq!(plan(table, "d_e").last().map(String::as_str), Some("d_e.ko"));
        assert!(plan(table, "builtin").is_empty());
        assert_eq!(plan("x.ko: y.ko\ny.ko: x.ko\n", "x"), ["y.ko", "x.ko"], "a cycle ends");
    }
}
