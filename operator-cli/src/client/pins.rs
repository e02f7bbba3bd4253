//! The pins of the server's keys.

use reqwest::Method;
use serde::Serialize;
use viworks_api::{PinChanged, PinPromotion, PinRequest, PinStatus};

use super::Client;
use crate::failure::Failure;

impl Client {
    /// Where their rotation stands.
    pub async fn pins(&self) -> Result<PinStatus, Failure> {
        self.get("/v1/pins", &[]).await
    }

    /// Stages one.
    pub async fn stage_pin(&self, request: &PinRequest) -> Result<PinChanged, Failure> {
        self.change_pins("/v1/pins/stage", request).await
    }

    /// Promotes one.
    pub async fn promote_pin(&self, request: &PinPromotion) -> Result<PinChanged, Failure> {
        self.change_pins("/v1/pins/promote", request).await
    }

    /// Retires one.
    pub async fn retire_pin(&self, request: &PinRequest) -> Result<PinChanged, Failure> {
        self.change_pins("/v1/pins/retire", request).await
    }

    async fn change_pins(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<PinChanged, Failure> {
        let builder = self.request(Method::POST, path).json(body);
        let changed = self.answer(builder).await;
        let unknown =
            "whether it was done is not known: ask for the same again, which changes nothing more";
        changed.map_err(|failure: Failure| failure.if_unanswered(unknown))
    }
}
