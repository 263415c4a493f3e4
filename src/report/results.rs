//! `results/<pipeline>/`: links to figures and tables under readable names.

use crate::artifact::Kind;
use crate::error::{IoExt, Result};
use crate::plan::{Node, Plan};
use crate::store::Store;
use crate::store::records::Hit;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// What was linked.
pub struct Links {
    /// `results/<pipeline>` or `results/<pipeline>/<profile>`, relative to the current folder where possible.
    pub dir: PathBuf,
    /// Figures and tables, relative to `dir`, in plan order.
    pub figures: Vec<String>,
}

/// When to look at every link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// The run's results are others than the last run's.
    Yes,
    /// They are the same: the links stand, unless somebody removed the folder.
    IfMissing,
}

/// Links the figures (SVG, PNG) and tables (CSV) of all nodes that are stored.
///
/// # Errors
/// What the disk says.
pub fn link(root: &Path, plan: &Plan, hits: &[Option<Hit>], store: &Store, refresh: Refresh) -> Result<Links> {
    let dir = folder(root, plan);
    let refresh = refresh == Refresh::Yes || !dir.is_dir();
    let mut figures = Vec::new();
    for (node, hit) in plan.nodes.iter().zip(hits) {
        let Some(hit) = hit else { continue };
        for (position, output) in hit.outputs.iter().enumerate() {
            let wanted: &[(&str, &str)] = match output.kind {
                Kind::Figure => &[("figure.svg", "svg"), ("figure.png", "png")],
                Kind::Table => &[("table.csv", "csv")],
                _ => continue,
            };
            for (file, extension) in wanted {
                let Some(entry) = output.files.iter().find(|f| f.name == *file) else { continue };
                let name = file_name(node, (position > 0).then_some(output.port.as_str()), extension);
                if !refresh {
                    figures.push(name);
                    continue;
                }
                let path = dir.join(&name);
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent).at("create", parent)?;
                }
                let blob = std::path::absolute(store.blob_path(&entry.digest)).at("find", &path)?;
                point(&path, &blob).at("link", &path)?;
                figures.push(name);
            }
        }
    }
    let here = std::env::current_dir().unwrap_or_default();
    let shown = dir.strip_prefix(&here).map(Path::to_path_buf).unwrap_or(dir);
    Ok(Links { dir: shown, figures })
}

/// `results/<pipeline>` or `results/<pipeline>/<profile>` under the project's root.
pub fn folder(root: &Path, plan: &Plan) -> PathBuf {
    let dir = root.join("results").join(&plan.identity.name);
    match &plan.identity.profile {
        Some(profile) => dir.join(profile),
        None => dir,
    }
}

/// `plane.svg`, `model.history.csv`, `rate=0.05,seed=1/scores.csv`.
fn file_name(node: &Node, port: Option<&str>, extension: &str) -> String {
    let mut name = node.stage.clone();
    if let Some(port) = port {
        name = format!("{name}.{port}");
    }
    let name = format!("{name}.{extension}");
    match node.label.strip_prefix(&node.stage).and_then(|rest| rest.strip_prefix('[')?.strip_suffix(']')) {
        Some(point) => format!("{}/{name}", point.replace('/', "_")),
        None => name,
    }
}

/// Makes `path` a link to `target`, unless it is one already.
fn point(path: &Path, target: &Path) -> io::Result<()> {
    match std::fs::read_link(path) {
        Ok(old) if old == target => return Ok(()),
        Ok(_) => std::fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // Something of the user's own: not ours to remove.
        Err(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is not a link stands there")),
    }
    symlink(target, path)
}
