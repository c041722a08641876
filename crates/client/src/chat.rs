//! Conversations.

use std::time::Duration;

use tandem_proto::v1::tool_choice::Mode;
use tandem_proto::v1::{
    ChatReply, ChatRequest, Effort, Message, Role, TokenizeRequest, Tool, ToolChoice, tokenize_request::Input,
};

use crate::builder::Inference;
use crate::sampling::request_methods;
use crate::stream::{EventStream, Wire};
use crate::{Client, Error};

pub use tandem_proto::v1::chat_event::Event as ChatEvent;

/// A conversation that waits for the assistant. It can be sent any number of times.
#[derive(Clone)]
pub struct Chat {
    client: Client,
    request: ChatRequest,
    timeout: Option<Duration>,
}

/// The assistant's reply, piece by piece.
pub type ChatStream = EventStream<tandem_proto::v1::ChatEvent>;

impl Chat {
    pub(crate) fn new(client: Client, request: ChatRequest) -> Self {
        Self { client, request, timeout: None }
    }

    /// Instructions.
    pub fn system(self, text: impl Into<String>) -> Self {
        self.text(Role::System, text)
    }

    /// What the user says.
    pub fn user(self, text: impl Into<String>) -> Self {
        self.text(Role::User, text)
    }

    /// What the assistant said. A [`ChatReply`] goes on with [`Chat::replied`].
    pub fn assistant(self, text: impl Into<String>) -> Self {
        self.text(Role::Assistant, text)
    }

    /// A reply of this conversation, calls and reasoning included.
    pub fn replied(self, reply: &ChatReply) -> Self {
        let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        self.message(Message {
            role: Role::Assistant.into(),
            content: if reply.tool_calls.is_empty() { Some(reply.content.clone()) } else { some(&reply.content) },
            reasoning: some(&reply.reasoning),
            tool_calls: reply.tool_calls.clone(),
            tool_call_id: None,
        })
    }

    /// The result of a call, by the call's id.
    pub fn tool_result(self, call_id: impl Into<String>, text: impl Into<String>) -> Self {
        self.message(Message {
            role: Role::Tool.into(),
            content: Some(text.into()),
            tool_call_id: Some(call_id.into()),
            ..Default::default()
        })
    }

    /// Any other message.
    pub fn message(mut self, message: Message) -> Self {
        self.request.messages.push(message);
        self
    }

    /// Something the model may call. `parameters` is a JSON schema, as JSON text; empty where there are none.
    pub fn tool(
        mut self,
        name: impl Into<String>,
        description: impl Into<String>,
        parameters: impl Into<String>,
    ) -> Self {
        let (name, description, parameters_json) = (name.into(), description.into(), parameters.into());
        self.request.tools.push(Tool { name, description, parameters_json, strict: false });
        self
    }

    /// The model must call a tool: one of these, or any where none is named.
    pub fn require_tool<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let allowed = names.into_iter().map(str::to_string).collect();
        self.request.tool_choice = Some(ToolChoice { mode: Mode::Required.into(), allowed });
        self
    }

    /// How long the model thinks.
    pub fn effort(mut self, effort: Effort) -> Self {
        self.request.effort = effort.into();
        self
    }

    /// Ends the answer before this text.
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.sampling_mut().stop.push(text.into());
        self
    }

    request_methods!();

    /// The whole reply.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn send(&self) -> Result<ChatReply, Error> {
        let call = async |mut inference: Inference, request| inference.chat(request).await;
        Ok(self.client.call(self.request.clone(), self.timeout, call).await?.0)
    }

    /// The reply as it is generated.
    ///
    /// # Errors
    /// See [`Error`]; once the stream has begun, it ends with one.
    pub async fn stream(&self) -> Result<ChatStream, Error> {
        let call = async |mut inference: Inference, request| inference.chat_stream(request).await;
        let (events, deadline) = self.client.call(self.request.clone(), self.timeout, call).await?;
        Ok(EventStream::new(events, deadline))
    }

    /// The prompt that the model would read, as token ids: what [`Client::generate`] goes on from.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tokenize(&self) -> Result<Vec<u32>, Error> {
        let request =
            TokenizeRequest { model: self.request.model.clone(), input: Some(Input::Chat(self.request.clone())) };
        Ok(self.client.tokens(request, self.timeout).await?.tokens)
    }

    fn text(self, role: Role, text: impl Into<String>) -> Self {
        self.message(Message { role: role.into(), content: Some(text.into()), ..Default::default() })
    }
}

impl Wire for tandem_proto::v1::ChatEvent {
    type Event = ChatEvent;

    fn open(self) -> (Option<ChatEvent>, Vec<crate::TokenLogprob>) {
        (self.event, self.logprobs)
    }

    fn is_last(event: &ChatEvent) -> bool {
        matches!(event, ChatEvent::Finished(_))
    }
}
