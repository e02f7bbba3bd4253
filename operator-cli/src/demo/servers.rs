//! The private servers of a demo, as far as its data is on any.

use super::layout::Layout;
use super::processes::Running;
use super::stores::Stores;
use super::{postgres, redis};
use crate::failure::Failure;

/// The programs of those that are needed.
#[derive(Debug)]
pub(super) struct Servers {
    stores: Stores,
    postgres: Option<postgres::Installed>,
    redis: Option<redis::Installed>,
}

impl Servers {
    /// Looks for what `stores` needs, before anything is made.
    pub(super) fn find(stores: Stores) -> Result<Self, Failure> {
        let (postgres, redis) = match stores {
            Stores::Embedded => (None, None),
            Stores::Postgres => (Some(postgres::Installed::find()?), None),
            Stores::PostgresRedis => (
                Some(postgres::Installed::find()?),
                Some(redis::Installed::find()?),
            ),
        };
        Ok(Self {
            stores,
            postgres,
            redis,
        })
    }

    /// What they are for.
    pub(super) const fn stores(&self) -> Stores {
        self.stores
    }

    /// Makes their folders.
    pub(super) fn make_places(&self, layout: &Layout) -> Result<(), Failure> {
        if let Some(installed) = &self.postgres {
            layout.make_postgres(installed.owner())?;
        }
        if self.redis.is_some() {
            layout.make_redis()?;
        }
        Ok(())
    }

    /// Makes what is missing of them and starts them.
    pub(super) async fn start(
        &self,
        layout: &Layout,
        running: &mut Vec<Running>,
    ) -> Result<(), Failure> {
        if let Some(installed) = &self.postgres {
            postgres::start(layout, installed, running).await?;
        }
        if let Some(installed) = &self.redis {
            redis::start(layout, installed, running).await?;
        }
        Ok(())
    }
}
