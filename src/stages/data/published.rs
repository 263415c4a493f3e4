//! What is known of a published dataset, and what follows from it: its way from the Hub, its checks, its description.
//!
//! Images are the official ones if they have the official digests; of a dataset whose images were never seen whole
//! here, the digests of the official files stand in for them, and the number of images of each class for a download.
//! Images from files that fail this are used, with a warning: somebody's own digits are data, too. A download that
//! fails it is damaged.

use super::images::Images;
use crate::artifact::Dataset;
use crate::artifact::dataset::About;
use crate::error::{Error, Result};
use crate::param::Count;
use crate::stage::{Context, Problem};
use sha2::{Digest as _, Sha256};
use std::path::Path;

/// A published dataset.
#[derive(Debug)]
pub struct Published {
    /// In tables and figures, such as `mnist`.
    pub name: &'static str,
    /// In sentences, such as `MNIST`.
    pub title: &'static str,
    /// Class names, in label order.
    pub classes: &'static [&'static str],
    /// Rows and columns of an image.
    pub size: (usize, usize),
    /// Which images a cut keeps.
    pub choice: Choice,
    /// Training and test images of each class.
    pub counts: [&'static [usize]; 2],
    /// Digests ([`Images::digest`]) of the official training and test images, if they are known.
    pub digests: Option<[&'static str; 2]>,
    /// SHA-256 of the official files, by name.
    pub files: &'static [(&'static str, &'static str)],
    /// Its place on the Hub, if it has one that is known to be good.
    pub hub: Option<Hub>,
    /// What a user can do who has no images yet.
    pub ways: &'static str,
    /// Where the images come from and how to cite them.
    pub source: &'static str,
}

/// Which images of a class are kept, when not all are.
#[derive(Clone, Copy, Debug)]
pub enum Choice {
    /// The first.
    First,
    /// Some that are evenly spaced, because those that stand together are alike.
    Spaced,
}

/// A place on the Hub: Parquet files, which hold encoded images in the official order.
#[derive(Clone, Copy, Debug)]
pub struct Hub {
    /// `owner/name`.
    pub repository: &'static str,
    /// A commit.
    pub revision: &'static str,
    /// Training and test images.
    pub files: [&'static str; 2],
    /// The column of the images.
    pub image: &'static str,
    /// The column of the labels.
    pub label: &'static str,
}

/// How many images of each class to keep.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// `n_train_per_class`.
    pub train: Option<Count>,
    /// `n_test_per_class`.
    pub test: Option<Count>,
}

impl Cut {
    /// Whether every class has as many.
    pub fn check(self, of: &Published) -> Vec<Problem> {
        let asked = [("n_train_per_class", self.train, of.counts[0]), ("n_test_per_class", self.test, of.counts[1])];
        let most = asked.into_iter().map(|(name, n, counts)| (name, n, counts.iter().copied().min().unwrap_or(0)));
        let too_many = most.filter_map(|(name, n, most)| Some((name, n.filter(|n| n.get() > most)?, most)));
        let problem = |(parameter, n, most): (&'static str, Count, usize)| Problem {
            parameter,
            message: format!("the smallest class of {} has {most} images, got {}", of.title, n.get()),
            hint: Some(format!("set it to {most} or less, or leave it out for all")),
        };
        too_many.map(problem).collect()
    }
}

impl Published {
    /// How these images differ from the official ones, as far as that is known.
    ///
    /// # Errors
    /// What differs, as a lower-case fragment.
    pub fn compare(&self, train: &Images, test: &Images) -> Result<(), String> {
        for (part, images, counts) in [("training", train, self.counts[0]), ("test", test, self.counts[1])] {
            let found = images.counts(self.classes.len());
            if let Some(class) = counts.iter().zip(&found).position(|(expected, found)| expected != found) {
                let (expected, found, class) = (counts[class], found[class], self.classes[class]);
                return Err(format!("expected {expected} {part} images of class `{class}`, found {found}"));
            }
        }
        let Some(digests) = self.digests else { return Ok(()) };
        let are_official =
            [train, test].iter().zip(digests).all(|(images, digest)| images.digest().to_string() == digest);
        if are_official { Ok(()) } else { Err(format!("the images are not those of {}", self.title)) }
    }

    /// Warns if these images, which were read from `path`, are not known to be the official ones. `files` are the files
    /// that they were read from.
    pub fn warn_if_other<'a>(
        &self,
        cx: &Context,
        path: &Path,
        (train, test): (&Images, &Images),
        files: impl IntoIterator<Item = (&'a Path, &'a [u8])>,
    ) {
        let files = || {
            for (path, bytes) in files {
                let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
                let official = self.files.iter().find(|(official, _)| *official == name);
                match official {
                    None => return Err(format!("`{name}` cannot be checked, only the files as published can")),
                    Some((_, digest)) if sha256(bytes) != *digest => {
                        return Err(format!("`{name}` is not the official file"));
                    }
                    Some(_) => {}
                }
            }
            Ok(())
        };
        // Digests of the images say more than those of the files.
        let compared = self.compare(train, test);
        let compared = if self.digests.is_none() { compared.and_then(|()| files()) } else { compared };
        if let Err(reason) = compared {
            let shown = path.display();
            cx.warn(format!("the images in `{shown}` are not known to be those of {}: {reason}", self.title));
        }
    }

    /// The dataset of these images, cut and then padded by `pad` black pixels on every side. Mean and standard deviation
    /// are those of all training images, padded.
    ///
    /// # Errors
    /// Fewer images of a class than to be kept.
    pub fn dataset(&self, cx: &Context, (train, test): (Images, Images), cut: Cut, pad: usize) -> Result<Dataset> {
        let padded = |images: Images| if pad > 0 { images.padded(pad) } else { images };
        self.dataset_of(cx, self.classes, (padded(train), padded(test)), cut)
    }

    /// The dataset of these images of `classes`, which need not be the published ones. Mean and standard deviation are
    /// those of all training images.
    ///
    /// # Errors
    /// Fewer images of a class than to be kept.
    pub fn dataset_of(
        &self,
        cx: &Context,
        classes: &[&str],
        (train, test): (Images, Images),
        cut: Cut,
    ) -> Result<Dataset> {
        let kept = |images: Images, n: Option<Count>| match (n, self.choice) {
            (Some(n), Choice::First) => images.first_per_class(n.get(), classes),
            (Some(n), Choice::Spaced) => images.spaced_per_class(n.get(), classes),
            (None, _) => Ok(images),
        };
        let (mean, std) = train.statistics();
        let (train, test) = (kept(train, cut.train)?, kept(test, cut.test)?);
        let about = About {
            name: self.name.into(),
            classes: classes.iter().map(|class| class.to_string()).collect(),
            mean,
            std,
            attack: None,
            source: self.source.into(),
        };
        let dataset = Dataset { about, train: train.into_split()?, test: test.into_split()?, triggered: None };
        cx.headline(format!("{} + {} images", dataset.train.len(), dataset.test.len()));
        Ok(dataset)
    }

    /// The training and the test images from the Hub.
    ///
    /// # Errors
    /// A failed download, or a damaged file.
    #[cfg(feature = "hub")]
    pub fn from_hub(&self, cx: &Context) -> Result<(Images, Images)> {
        use super::hub::{Config, RemoteFile, fetch};
        use super::parquet::{Layout, read};
        use crate::error::ResultExt;
        let Some(hub) = self.hub else {
            return Err(Error::user(format!("{} is not read from the Hugging Face Hub", self.title)).hint(self.ways));
        };
        let config = Config::from_environment();
        let mut paths = Vec::new();
        let mut splits = Vec::new();
        for (name, counts) in hub.files.into_iter().zip(self.counts) {
            let file = RemoteFile { repository: hub.repository, revision: hub.revision, name };
            let path = fetch(cx, &config, file).hint(self.ways)?;
            // The cache links to a blob. It is the blob that must go: the client would link to it again.
            let path = path.canonicalize().unwrap_or(path);
            cx.check_stop()?;
            let layout = Layout { size: self.size, image: hub.image, label: hub.label, n: counts.iter().sum() };
            splits.push(read(&path, layout).map_err(|reason| self.damaged(&path, &reason))?);
            paths.push(path);
        }
        let Ok::<[Images; 2], _>([train, test]) = splits.try_into() else {
            return Err(Error::stage("expected two splits"));
        };
        self.compare(&train, &test).map_err(|reason| self.damaged(&paths[0], &reason))?;
        Ok((train, test))
    }

    #[cfg(feature = "hub")]
    fn damaged(&self, path: &Path, reason: &str) -> Error {
        let folder = path.parent().unwrap_or(path).display();
        Error::machine(format!("the download `{}` is damaged: {reason}", path.display()))
            .hint(format!("delete the files in `{folder}` and run again; or else, {}", self.ways))
    }

    /// The error of a program that cannot download.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "hub"))]
    pub fn from_hub(&self, _: &Context) -> Result<(Images, Images)> {
        let title = self.title;
        Err(Error::user(format!("this program was built without the feature `hub`, so it cannot download {title}"))
            .hint(self.ways))
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
