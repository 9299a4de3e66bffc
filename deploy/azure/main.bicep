// promptmill in one resource group: a queue, a store, models, and workers that scale with the queue.
//
// No secret is made or kept: every service lets the workers' identity in, and keys are switched off.
// `up` deploys this file, `down` removes all of it; README.md explains both.
targetScope = 'resourceGroup'

@description('One deployment of a model, as the account is to have it.')
type Model = {
  // What jobs ask for in their `model`, and the name of the deployment.
  name: string
  // The model as the service calls it.
  model: string
  // Its version.
  version: string
  // Where it may run and how it is paid, such as GlobalStandard or DataZoneStandard.
  sku: string
  // Its quota in thousands of tokens a minute.
  capacity: int
  // Its quota in requests a minute.
  rpm: int
}

@description('The region of everything but the models.')
param location string = resourceGroup().location

@description('The region of the models, where quota is to be had.')
param modelsLocation string = location

@description('What all names begin with.')
@minLength(3)
@maxLength(11)
param name string = 'promptmill'

@description('Where the workers run. `none` makes everything else, such as the registry before there is an image.')
@allowed([
  'none'
  'containerApps'
  'containerInstances'
  'appService'
])
param compute string = 'containerApps'

@description('The image in the registry, as REPOSITORY:TAG.')
param image string = 'promptmill:latest'

@description('The most workers at a time. More than the quota keeps busy only wait for each other.')
@minValue(1)
@maxValue(100)
param maxWorkers int = 10

@description('Calls in flight at a time from one worker to one deployment.')
@minValue(1)
param concurrency int = 64

@description('Workers come as soon as there are jobs. Without it, only the nightly job works. Container Apps only.')
param scaleByQueue bool = true

@description('When a job drains the queue each night, as five cron fields in UTC; empty is never. Container Apps only.')
param nightlyAt string = ''

@secure()
@description('With it there is a dashboard, and workers scale by what the quota feeds. Whoever brings it may do everything: 16 characters or more. Container Apps only.')
param dashboardToken string = ''

@secure()
@description('What the scaler brings to the dashboard; it may only read. Needed with `dashboardToken`.')
param scalerToken string = ''

@description('Of Container Instances: as many workers as `maxWorkers` are kept, by an NGroups resource (in preview), in place of groups that drain the queue once.')
param keepInstances bool = false

@description('The models, each with its quota.')
param models Model[]

@description('Object ids of people and groups who may enqueue, read results and call the models.')
param operators array = []

@description('Whether the operators are people or groups.')
@allowed([
  'User'
  'Group'
])
param operatorsAre string = 'User'

@description('Request units a second, at most, for the whole database; 0 is serverless, for less than some hundred jobs a second.')
param storeMaxRequestUnits int = 0

@description('Premium is needed for private endpoints and for messages above 256 KB.')
@allowed([
  'Standard'
  'Premium'
])
param queueTier string = 'Standard'

@description('Keep the services off the public network, behind private endpoints.')
param private bool = false

@description('Put API Management in front of the models.')
param gateway bool = false

@description('Who is told of the gateway by its operators; API Management asks for it.')
param gatewayContact string = 'noreply@example.com'

@description('How long logs are kept, in days.')
param logDays int = 30

var suffix = uniqueString(resourceGroup().id)
var prefix = toLower('${name}-${suffix}')
// Registries and some others take letters and digits only.
var compact = toLower(replace('${name}${suffix}', '-', ''))
var queueName = 'prompts'
var databaseName = 'promptmill'

module identities 'modules/identities.bicep' = {
  name: 'identities'
  params: {
    location: location
    prefix: prefix
  }
}

module logs 'modules/logs.bicep' = {
  name: 'logs'
  params: {
    location: location
    prefix: prefix
    days: logDays
  }
}

module network 'modules/network.bicep' = if (private) {
  name: 'network'
  params: {
    location: location
    prefix: prefix
    compute: compute
  }
}

module queue 'modules/queue.bicep' = {
  name: 'queue'
  params: {
    location: location
    prefix: prefix
    queueName: queueName
    tier: private ? 'Premium' : queueTier
    private: private
    workspaceId: logs.outputs.workspaceId
    workerPrincipalId: identities.outputs.workerPrincipalId
    scalerPrincipalId: identities.outputs.scalerPrincipalId
    operators: operators
    operatorsAre: operatorsAre
  }
}

module store 'modules/store.bicep' = {
  name: 'store'
  params: {
    location: location
    prefix: prefix
    databaseName: databaseName
    maxRequestUnits: storeMaxRequestUnits
    private: private
    workspaceId: logs.outputs.workspaceId
    principalIds: concat([identities.outputs.workerPrincipalId], operators)
  }
}

module openai 'modules/models.bicep' = {
  name: 'models'
  params: {
    location: modelsLocation
    prefix: prefix
    models: models
    private: private
    workspaceId: logs.outputs.workspaceId
    workerPrincipalId: identities.outputs.workerPrincipalId
    operators: operators
    operatorsAre: operatorsAre
  }
}

module registry 'modules/registry.bicep' = {
  name: 'registry'
  params: {
    location: location
    compact: compact
    private: private
    workerPrincipalId: identities.outputs.workerPrincipalId
  }
}

module endpoints 'modules/endpoints.bicep' = if (private) {
  name: 'endpoints'
  params: {
    location: location
    prefix: prefix
    networkId: network!.outputs.networkId
    subnetId: network!.outputs.endpointsSubnetId
    queueNamespaceId: queue.outputs.namespaceId
    storeAccountId: store.outputs.accountId
    modelsAccountId: openai.outputs.accountId
    registryId: registry.outputs.registryId
  }
}

// The gateway's tier reaches no private endpoint.
var hasGateway = gateway && private ? fail('Take either gateway or private.') : gateway

module apiManagement 'modules/gateway.bicep' = if (hasGateway) {
  name: 'gateway'
  params: {
    location: location
    prefix: prefix
    contact: gatewayContact
    modelsEndpoint: openai.outputs.endpoint
    workspaceId: logs.outputs.workspaceId
  }
}

var endpoint = hasGateway ? apiManagement!.outputs.endpoint : openai.outputs.endpoint

// The program's whole configuration, as the variables it reads: config/azure-managed-identity.toml in
// another spelling. Every way to run the workers gets the same.
var identitySettings = [
  {
    name: 'PROMPTMILL__QUEUE__SERVICE_BUS__CREDENTIAL__MANAGED_IDENTITY__CLIENT_ID'
    value: identities.outputs.workerClientId
  }
  {
    name: 'PROMPTMILL__STORE__COSMOS__CREDENTIAL__MANAGED_IDENTITY__CLIENT_ID'
    value: identities.outputs.workerClientId
  }
]
var serviceSettings = [
  {
    name: 'PROMPTMILL_LOG'
    value: 'info'
  }
  {
    name: 'PROMPTMILL__QUEUE__SERVICE_BUS__NAMESPACE'
    value: queue.outputs.host
  }
  {
    name: 'PROMPTMILL__QUEUE__SERVICE_BUS__QUEUE'
    value: queueName
  }
  {
    name: 'PROMPTMILL__STORE__COSMOS__ENDPOINT'
    value: store.outputs.endpoint
  }
  {
    name: 'PROMPTMILL__STORE__COSMOS__DATABASE'
    value: databaseName
  }
]
// The quota is told whole to every worker.
var modelSettings = flatten(map(range(0, length(models)), i => [
  {
    name: 'PROMPTMILL__DEPLOYMENTS__${i}__NAME'
    value: models[i].name
  }
  {
    name: 'PROMPTMILL__DEPLOYMENTS__${i}__ENDPOINT'
    value: endpoint
  }
  {
    name: 'PROMPTMILL__DEPLOYMENTS__${i}__DEPLOYMENT'
    value: models[i].name
  }
  {
    name: 'PROMPTMILL__DEPLOYMENTS__${i}__MODEL'
    value: models[i].name
  }
  {
    name: 'PROMPTMILL__DEPLOYMENTS__${i}__TPM'
    value: string(models[i].capacity * 1000)
  }
  {
    name: 'PROMPTMILL__DEPLOYMENTS__${i}__RPM'
    value: string(models[i].rpm)
  }
  {
    name: 'PROMPTMILL__DEPLOYMENTS__${i}__CONCURRENCY'
    value: string(concurrency)
  }
  {
    name: 'PROMPTMILL__DEPLOYMENTS__${i}__TOKEN_SCOPE'
    value: 'https://cognitiveservices.azure.com/.default'
  }
  {
    name: 'PROMPTMILL__DEPLOYMENTS__${i}__CREDENTIAL__MANAGED_IDENTITY__CLIENT_ID'
    value: identities.outputs.workerClientId
  }
]))
var settings = concat(serviceSettings, identitySettings, modelSettings)
var readsByToken = !empty(dashboardToken) && empty(scalerToken) ? fail('Give scalerToken with dashboardToken.') : scalerToken
var imageReference = '${registry.outputs.loginServer}/${image}'

module containerApps 'modules/containerApps.bicep' = if (compute == 'containerApps') {
  name: 'container-apps'
  params: {
    location: location
    prefix: prefix
    image: imageReference
    registryServer: registry.outputs.loginServer
    settings: settings
    workerIdentityId: identities.outputs.workerId
    scalerIdentityId: identities.outputs.scalerId
    queueNamespace: queue.outputs.namespaceName
    queueName: queueName
    maxWorkers: maxWorkers
    scaleByQueue: scaleByQueue
    nightlyAt: nightlyAt
    workspaceName: logs.outputs.workspaceName
    subnetId: private ? network!.outputs.computeSubnetId : ''
    operatorToken: dashboardToken
    scalerToken: readsByToken
  }
}

module containerInstances 'modules/containerInstances.bicep' = if (compute == 'containerInstances' && !keepInstances) {
  name: 'container-instances'
  params: {
    location: location
    prefix: prefix
    image: imageReference
    registryServer: registry.outputs.loginServer
    settings: settings
    workerIdentityId: identities.outputs.workerId
    workers: maxWorkers
    workspaceName: logs.outputs.workspaceName
    subnetId: private ? network!.outputs.computeSubnetId : ''
  }
}

module instancesKept 'modules/instancesKept.bicep' = if (compute == 'containerInstances' && keepInstances) {
  name: 'instances-kept'
  params: {
    location: location
    prefix: prefix
    image: imageReference
    registryServer: registry.outputs.loginServer
    settings: settings
    workerIdentityId: identities.outputs.workerId
    workers: maxWorkers
    workspaceName: logs.outputs.workspaceName
    subnetId: private ? network!.outputs.computeSubnetId : ''
  }
}

module appService 'modules/appService.bicep' = if (compute == 'appService') {
  name: 'app-service'
  params: {
    location: location
    prefix: prefix
    image: imageReference
    settings: settings
    workerIdentityId: identities.outputs.workerId
    workerClientId: identities.outputs.workerClientId
    workers: maxWorkers
    workspaceId: logs.outputs.workspaceId
    subnetId: private ? network!.outputs.computeSubnetId : ''
  }
}

@description('The registry that takes the image.')
output registryName string = registry.outputs.registryName
@description('For `queue.service_bus.namespace` on an operator\'s machine.')
output queueHost string = queue.outputs.host
@description('For `store.cosmos.endpoint`.')
output storeEndpoint string = store.outputs.endpoint
@description('The dashboard, where there is one.')
output dashboardUrl string = compute == 'containerApps' ? containerApps!.outputs.dashboardUrl : ''
@description('For `endpoint` of each of `[[deployments]]`.')
output modelsEndpoint string = endpoint
@description('The account whose name stays reserved for 48 hours after it is removed; `down` frees it.')
output modelsAccountName string = openai.outputs.accountName
