// Container Instances: a fixed number of workers, each a group of its own, until the queue is empty.
//
// There is no autoscaler here: deploy for a night, and remove the groups after it.
param location string
param prefix string
param image string
param registryServer string
param settings array
param workerIdentityId string
param workers int
param workspaceName string
param subnetId string

resource workspace 'Microsoft.OperationalInsights/workspaces@2025-07-01' existing = {
  name: workspaceName
}

resource group 'Microsoft.ContainerInstance/containerGroups@2025-09-01' = [
  for i in range(0, workers): {
    name: '${prefix}-worker-${i}'
    location: location
    identity: {
      type: 'UserAssigned'
      userAssignedIdentities: {
        '${workerIdentityId}': {}
      }
    }
    properties: {
      osType: 'Linux'
      sku: 'Standard'
      // A drained queue ends the worker with 0 or, where jobs failed, 1: it must not start again.
      restartPolicy: 'Never'
      imageRegistryCredentials: [
        {
          server: registryServer
          identity: workerIdentityId
        }
      ]
      containers: [
        {
          name: 'worker'
          properties: {
            image: image
            command: [
              '/usr/bin/promptmill'
              'work'
              '--drain'
            ]
            environmentVariables: settings
            resources: {
              requests: {
                cpu: 1
                memoryInGB: json('1')
              }
            }
            securityContext: {
              allowPrivilegeEscalation: false
              privileged: false
              runAsUser: 65532
              runAsGroup: 65532
              capabilities: {
                drop: [
                  'ALL'
                ]
              }
            }
          }
        }
      ]
      diagnostics: {
        logAnalytics: {
          workspaceId: workspace.properties.customerId
          // The service writes the logs with it; no container sees it.
          workspaceKey: workspace.listKeys().primarySharedKey
          logType: 'ContainerInstanceLogs'
        }
      }
      subnetIds: empty(subnetId) ? null : [
        {
          id: subnetId
        }
      ]
    }
  }
]

output groups array = [for i in range(0, workers): group[i].name]
