//! Layers merged as umoci and podman merge them: random trees, each laid over others, compared file by file.
//!
//! One image has many small trees side by side, so that a few images are thousands of merges. `BOUVET_LAYER_IMAGES` is
//! how many images there are, `BOUVET_LAYER_SEED` chooses others.

#![expect(clippy::unwrap_used, reason = "test code: a panic is how it reports")]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bouvet_e2e::registry::{self, Mounted, command, run};
use bouvet_e2e::skip::skipped;
use bouvet_image::{CacheOptions, Digest, Images, ImagesOptions};
use tar::{EntryType, Header};

/// Makes a skip for lack of podman a failure.
const REQUIRE_PODMAN: &str = "REQUIRE_PODMAN";
const IMAGES: u64 = 12;
const TREES: usize = 40;
const SEED: u64 = 19;

/// Random numbers that are the same in each run (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % sides as u64).unwrap()
    }

    fn path(&mut self) -> String {
        let parts: Vec<&str> = (0..=self.roll(3)).map(|_| ["a", "b", "c"][self.roll(3)]).collect();
        parts.join("/")
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.roll(last + 1);
            items.swap(last, other);
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Directory,
    File(String),
    Symlink(&'static str),
    HardLink(String),
    Fifo,
}

/// A layer of one tree: what is at each path, and what it hides of the layers below.
#[derive(Debug, Clone, Default)]
struct Layer {
    own: BTreeMap<String, Kind>,
    hidden: BTreeSet<String>,
    opaque: BTreeSet<String>,
}

/// Paths of a tree for the next layer: whether each is a directory.
type There = BTreeMap<String, bool>;

fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// For whom a layer is made: what podman refuses, or gets wrong, umoci takes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reader {
    Umoci,
    Podman,
}

impl Layer {
    fn random(dice: &mut Dice, below: &There, reader: Reader) -> Self {
        let mut layer = Self::default();
        for number in 0..1 + dice.roll(7) {
            let path = dice.path();
            let kind = match dice.roll(12) {
                0..4 => Kind::Directory,
                4..7 => Kind::File(format!("{number} {}", dice.roll(1000))),
                7..9 => Kind::Symlink(["a", "../b", "../../c", "b/c", "nowhere"][dice.roll(5)]),
                9 => Kind::Fifo,
                _ => Kind::HardLink(String::new()),
            };
            layer.add(path, kind, dice, below, reader);
        }
        for _ in 0..dice.roll(4) {
            let path = dice.path();
            layer.hide(path, dice.roll(3) == 0, below, reader);
        }
        layer
    }

    fn add(&mut self, path: String, mut kind: Kind, dice: &mut Dice, below: &There, reader: Reader) {
        if kind == Kind::HardLink(String::new()) {
            let own =
                self.own.iter().filter(|(_, kind)| !matches!(kind, Kind::Directory | Kind::HardLink(_)));
            let mut targets: Vec<String> = own.map(|(path, _)| path.clone()).collect();
            if reader == Reader::Umoci {
                let files = below.iter().filter(|(path, is_dir)| !**is_dir && !self.own.contains_key(*path));
                // The way to a target must be there when the link is made, whatever this layer replaces.
                targets.extend(files.map(|(path, _)| path.clone()).filter(|path| !path.contains('/')));
            }
            targets.retain(|target| *target != path && !ancestors(&path).any(|at| at == target));
            if targets.is_empty() {
                return;
            }
            kind = Kind::HardLink(targets[dice.roll(targets.len())].clone());
        }
        let is_target = |at: &str| self.own.values().any(|kind| *kind == Kind::HardLink(at.to_owned()));
        let is_over = |at: &str| at.starts_with(&format!("{path}/"));
        let blocked =
            ancestors(&path).any(|at| self.own.get(at).is_some_and(|kind| *kind != Kind::Directory));
        let taken = self.own.contains_key(&path) || is_target(&path);
        let over_own = kind != Kind::Directory && self.own.keys().any(|at| is_over(at));
        let over_target = self.own.values().any(|kind| matches!(kind, Kind::HardLink(to) if is_over(to)));
        let below_target = ancestors(&path).any(is_target);
        if blocked || taken || over_own || over_target || below_target {
            return;
        }
        self.clear_way(&path, below);
        self.own.insert(path, kind);
    }

    /// Makes directories of what lower layers have on the way, as tools do that write layers.
    fn clear_way(&mut self, path: &str, below: &There) {
        for at in ancestors(path) {
            if below.get(at) == Some(&false) {
                self.own.entry(at.to_owned()).or_insert(Kind::Directory);
            }
        }
    }

    fn hide(&mut self, path: String, all_in_it: bool, below: &There, reader: Reader) {
        let dir = if all_in_it { &path[..] } else { parent(&path) };
        let survives = |at: &str| {
            let is_hidden = self.hidden.contains(at) || self.opaque.contains(parent(at));
            let own = self.own.get(at);
            own == Some(&Kind::Directory) || own.is_none() && below.get(at) == Some(&true) && !is_hidden
        };
        let is_there = dir.is_empty() || ancestors(dir).chain([dir]).all(survives);
        let holds_target =
            self.own.values().any(|kind| matches!(kind, Kind::HardLink(to) if !self.own.contains_key(to)));
        // podman's overlay cannot have a whiteout and an entry of the same name, nor hide what is not there.
        let suits = reader == Reader::Umoci
            || all_in_it
            || below.contains_key(&path) && !self.own.contains_key(&path) && !self.opaque.contains(dir);
        let inside = format!("{path}/");
        let has_below = |at: &String| at.starts_with(&inside);
        let keeps_own = all_in_it || reader == Reader::Umoci || !self.own.keys().any(has_below);
        // A directory that only entries below it imply has other metadata if the mark is read first.
        let is_implied =
            |at: &str| (at == path && !all_in_it || at.starts_with(&inside)) && !self.own.contains_key(at);
        let has_implied = self.own.keys().any(|own| ancestors(own).any(is_implied));
        if !is_there || holds_target || !suits || !keeps_own || has_implied {
            return;
        }
        // Paths below a hidden one are hidden with it.
        self.hidden.retain(|at| !at.starts_with(&inside));
        self.opaque.retain(|at| !at.starts_with(&inside) && (all_in_it || *at != path));
        if all_in_it {
            self.opaque.insert(path);
        } else {
            self.hidden.insert(path);
        }
    }

    /// Paths with this layer over `below`.
    fn over(&self, below: &There) -> There {
        let mut there = below.clone();
        let mut remove = |path: &str, itself: bool| {
            let inside = format!("{path}/");
            there.retain(|at, _| !at.starts_with(&inside) && (!itself || at != path));
        };
        self.opaque.iter().for_each(|path| remove(path, false));
        self.hidden.iter().for_each(|path| remove(path, true));
        for (path, kind) in &self.own {
            if *kind != Kind::Directory {
                remove(path, true);
            }
        }
        for (path, kind) in &self.own {
            for at in ancestors(path) {
                there.insert(at.to_owned(), true);
            }
            there.insert(path.clone(), *kind == Kind::Directory);
        }
        there
    }

    /// The entries in random order, but for what the archive's readers need: directories and targets come first.
    fn write(&self, tree: &str, dice: &mut Dice, archive: &mut tar::Builder<Vec<u8>>) {
        let mut names: Vec<String> = self.own.keys().cloned().collect();
        names.extend(self.hidden.iter().map(|path| match path.rsplit_once('/') {
            Some((parent, name)) => format!("{parent}/.wh.{name}"),
            None => format!(".wh.{path}"),
        }));
        names.extend(self.opaque.iter().map(|path| format!("{path}/.wh..wh..opq")));
        dice.shuffle(&mut names);
        let mut written = BTreeSet::new();
        for name in &names {
            self.write_one(name, tree, &mut written, archive);
        }
    }

    fn write_one(
        &self,
        name: &str,
        tree: &str,
        written: &mut BTreeSet<String>,
        archive: &mut tar::Builder<Vec<u8>>,
    ) {
        let before = ancestors(name).filter(|at| self.own.contains_key(*at));
        for at in before.map(str::to_owned).collect::<Vec<_>>() {
            self.write_one(&at, tree, written, archive);
        }
        if let Some(Kind::HardLink(to)) = self.own.get(name)
            && self.own.contains_key(to)
        {
            self.write_one(to, tree, written, archive);
        }
        if !written.insert(name.to_owned()) {
            return;
        }
        let path = format!("{tree}/{name}");
        let mut header = Header::new_gnu();
        // A hard link repeats the metadata of its file, and podman applies it.
        let described = match self.own.get(name) {
            Some(Kind::HardLink(to)) => to,
            _ => name,
        };
        let weight = described.bytes().map(u64::from).sum::<u64>();
        header.set_mtime(1_700_000_000 + weight);
        header.set_uid(weight % 3);
        header.set_gid(weight % 5);
        header.set_size(0);
        let mode = [0o644, 0o755, 0o4711][usize::try_from(weight % 3).unwrap()];
        header.set_mode(mode);
        match self.own.get(name) {
            None => {
                header.set_entry_type(EntryType::Regular);
                archive.append_data(&mut header, path, &b""[..]).unwrap();
            }
            Some(Kind::Directory) => {
                header.set_entry_type(EntryType::Directory);
                archive.append_data(&mut header, path, &b""[..]).unwrap();
            }
            Some(Kind::Fifo) => {
                header.set_entry_type(EntryType::Fifo);
                archive.append_data(&mut header, path, &b""[..]).unwrap();
            }
            Some(Kind::File(text)) => {
                header.set_entry_type(EntryType::Regular);
                header.set_size(text.len() as u64);
                archive.append_data(&mut header, path, text.as_bytes()).unwrap();
            }
            Some(Kind::Symlink(to)) => {
                header.set_entry_type(EntryType::Symlink);
                archive.append_link(&mut header, path, to).unwrap();
            }
            Some(Kind::HardLink(to)) => {
                header.set_entry_type(EntryType::Link);
                archive.append_link(&mut header, path, format!("{tree}/{to}")).unwrap();
            }
        }
    }
}

/// The layers of an image with many trees. Each layer changes most of them.
fn random_layers(dice: &mut Dice, reader: Reader) -> Vec<Vec<u8>> {
    let mut trees: Vec<There> = vec![There::new(); TREES];
    let layers = 2 + dice.roll(3);
    let one = |number: usize, dice: &mut Dice, trees: &mut Vec<There>| {
        let mut archive = tar::Builder::new(Vec::new());
        for (index, there) in trees.iter_mut().enumerate() {
            let layer = if number == 0 {
                Layer::random(dice, &There::new(), reader)
            } else {
                Layer::random(dice, there, reader)
            };
            layer.write(&format!("t{index}"), dice, &mut archive);
            *there = layer.over(there);
        }
        archive.into_inner().unwrap()
    };
    (0..layers).map(|number| one(number, dice, &mut trees)).collect()
}

/// Writes an image in the OCI layout to `dir`, by hand, as `layout:t`.
fn write_image(dir: &Path, layers: &[Vec<u8>]) -> String {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let blob = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        serde_json::json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": bytes.len() })
    };
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = serde_json::json!({
        "os": "linux", "architecture": architecture, "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = blob("config.v1+json", config.to_string().as_bytes());
    let layers: Vec<_> = layers.iter().map(|layer| blob("layer.v1.tar", layer)).collect();
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let mut manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "t" });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    format!("{}:t", dir.display())
}

/// Each path of the trees with what is there: kind, metadata, content, and the first name of a file with several.
fn listed(root: &Path, reader: Reader) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut names: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            // Files that a guest needs, which are not of the trees.
            if !name.starts_with('t') || name.starts_with("tmp") {
                continue;
            }
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            let kind = metadata.file_type();
            let about = format!("{:o} {}:{}", metadata.mode(), metadata.uid(), metadata.gid());
            let what = if kind.is_dir() {
                open.push(path);
                match reader {
                    // The time of a directory is that of the last change in it.
                    Reader::Umoci => about,
                    // Where a layer has no entry for a directory, it has podman's own metadata.
                    Reader::Podman => "directory".to_owned(),
                }
            } else if kind.is_symlink() {
                format!("-> {}", std::fs::read_link(&path).unwrap().display())
            } else if kind.is_file() {
                format!("{about} {} {:?}", metadata.mtime(), std::fs::read_to_string(&path).unwrap())
            } else {
                format!("{about} {}", metadata.mtime())
            };
            if !kind.is_dir() {
                names.entry(metadata.ino()).or_default().push(name.clone());
            }
            found.insert(name, what);
        }
    }
    for mut same in names.into_values().filter(|names| names.len() > 1) {
        same.sort();
        for name in &same {
            found.get_mut(name).unwrap().push_str(&format!(" = {}", same[0]));
        }
    }
    found
}

async fn ours(layout: &str, work: &Path, reader: Reader) -> Option<BTreeMap<String, String>> {
    let images = Images::open(CacheOptions::new(work.join("cache")), ImagesOptions::default()).unwrap();
    let image = images.pull(&format!("oci:{layout}").parse().unwrap(), |_| ()).await.unwrap();
    Mounted::new(&image.rootfs).map(|mounted| listed(mounted.path(), reader))
}

fn by_umoci(layout: &str, work: &Path) -> BTreeMap<String, String> {
    let root = work.join("umoci");
    run(command("umoci").args(["raw", "unpack", "--image", layout]).arg(&root));
    listed(&root, Reader::Umoci)
}

/// podman with a storage of its own. Its overlay driver is what people have.
struct Podman {
    dir: PathBuf,
}

impl Podman {
    /// `None` with the reason where it cannot be used.
    fn new(dir: PathBuf) -> Result<Self, String> {
        let podman = Self { dir };
        let mut info = podman.command();
        let output = info.args(["info", "--format", "{{.Store.GraphDriverName}}"]).output();
        let output = output.map_err(|error| format!("podman cannot be run: {error}"))?;
        match output.status.success() {
            true => Ok(podman),
            false => {
                Err(format!("podman cannot be used: {}", String::from_utf8_lossy(&output.stderr).trim()))
            }
        }
    }

    fn command(&self) -> std::process::Command {
        let mut podman = command("podman");
        podman.arg("--root").arg(self.dir.join("storage")).arg("--runroot").arg(self.dir.join("run"));
        podman.args(["--storage-driver", "overlay", "--events-backend", "none"]);
        podman
    }

    fn merged(&self, layout: &str) -> BTreeMap<String, String> {
        let told = |podman: &mut std::process::Command| {
            let output = String::from_utf8(run(podman).stdout).unwrap();
            output.lines().last().unwrap_or_default().to_owned()
        };
        // podman makes a name of the path, which must be in lower case: a relative one is.
        let (dir, _) = layout.rsplit_once('/').unwrap();
        let id = told(self.command().current_dir(dir).args(["pull", "--quiet", "oci:layout:t"]));
        let root = told(self.command().args(["image", "mount", &id]));
        let merged = listed(Path::new(&root), Reader::Podman);
        run(self.command().args(["image", "unmount", &id]));
        merged
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // The storage is a mount of its own, which keeps its directory from being removed.
        self.command().args(["system", "reset", "--force"]).output().ok();
        command("umount").arg(self.dir.join("storage/overlay")).output().ok();
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var_os(name).map_or(default, |text| text.to_str().unwrap().parse().unwrap())
}

async fn compare(reader: Reader, theirs: impl Fn(&str, &Path) -> BTreeMap<String, String>) {
    let seed = number("BOUVET_LAYER_SEED", SEED);
    for index in 0..number("BOUVET_LAYER_IMAGES", IMAGES) {
        let work = tempfile::tempdir().unwrap();
        let layers = random_layers(&mut Dice(seed * 1_000_003 + index), reader);
        let layout = write_image(&work.path().join("layout"), &layers);
        let Some(ours) = ours(&layout, work.path(), reader).await else { return };
        let theirs = theirs(&layout, work.path());
        let differences: Vec<String> = ours
            .keys()
            .chain(theirs.keys())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter(|path| ours.get(*path) != theirs.get(*path))
            .map(|path| format!("{path}: ours {:?}, {reader:?} {:?}", ours.get(path), theirs.get(path)))
            .collect();
        if !differences.is_empty() {
            let kept = work.keep();
            panic!("image {index} of seed {seed}, in {}:\n{}", kept.display(), differences.join("\n"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_layers_merge_as_by_umoci() {
    if let Some(tool) = registry::missing_tool() {
        skipped(registry::REQUIRE, &format!("there is no `{tool}`"));
        return;
    }
    compare(Reader::Umoci, by_umoci).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_layers_merge_as_by_podman() {
    let dir = tempfile::tempdir().unwrap();
    match Podman::new(dir.path().to_owned()) {
        Ok(podman) => compare(Reader::Podman, |layout, _| podman.merged(layout)).await,
        Err(reason) => skipped(REQUIRE_PODMAN, &reason),
    }
}
