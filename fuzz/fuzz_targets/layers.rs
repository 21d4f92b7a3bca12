//! Layers of a hostile image: refused, or an image in which every path can be read.
//!
//! Sums of headers are put right, as few inputs would get past them otherwise.

#![no_main]

use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|layers: Vec<Vec<u8>>| {
    let layers: Vec<Vec<u8>> = layers.into_iter().take(4).map(summed).collect();
    let into = tempfile::NamedTempFile::new().expect("a temporary file");
    if bouvet_image::pull::convert_layers(&layers, into.as_file()).is_err() {
        return;
    }
    let image = std::fs::read(into.path()).expect("what was written is read");
    let fs = EroFS::new(SliceImage::new(&image)).expect("an image");
    for entry in fs.walk_dir("/").expect("a root") {
        entry.expect("every entry is read");
    }
});

fn summed(mut layer: Vec<u8>) -> Vec<u8> {
    layer.resize(layer.len().next_multiple_of(512), 0);
    for block in layer.chunks_exact_mut(512) {
        if block.iter().any(|byte| *byte != 0) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    layer
}
